"""What an application does without a history store: one compressed blob per user in Redis."""

from __future__ import annotations

from typing import Any

import numpy as np
from engines import Unpacker, pack_blob
from workload import LAST_N, READ, Workload


class BlobsInRedis:
    """Whole histories, column by column, zstd; reads fetch and unpack them whole and keep the newest."""

    def __init__(self, client: Any, cluster: bool) -> None:
        self._client, self._cluster, self._unpack = client, cluster, Unpacker()

    def build(self, workload: Workload) -> None:
        for users, lengths, events in workload.blocks():
            stops = np.cumsum(lengths)
            pipeline = self._client.pipeline(**({} if self._cluster else {"transaction": False}))
            for user, low, high in zip(users.tolist(), stops - lengths, stops):
                pipeline.set(f"blob:{user}", pack_blob({name: values[low:high] for name, values in events.items()}))
            pipeline.execute()

    def read(self, users: np.ndarray) -> int:
        pipeline = self._client.pipeline(**({} if self._cluster else {"transaction": False}))
        for user in users.tolist():
            pipeline.get(f"blob:{user}")
        histories = [self._unpack(blob) for blob in pipeline.execute() if blob]
        joined = {name: np.concatenate([history[name][-LAST_N:] for history in histories]) for name in READ}
        return len(joined[READ[0]])
