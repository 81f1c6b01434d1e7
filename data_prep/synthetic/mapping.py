"""The recipe that prepares a synthetic log."""

from __future__ import annotations

from data_prep.synthetic.world import World

TEXT = """\
# A log that `laser-prep synthetic` wrote: log/*.parquet and items.parquet in --raw. Clicks depend on what the user did
# with the same topic at least {distance} events before; truth.json says what the best possible model reaches.
name: synthetic
note: "Synthetic, by laser-prep synthetic: seed {seed}, evidence at least {distance} events back."
log: {{files: "log/*.parquet"}}
user: {{column: user}}
item: {{column: item, width: 16}}
timestamp: {{column: time, unit: ms}}
label: {{column: click}}
item_table:
  source: {{files: items.parquet}}
  key: {{column: item}}
item_side:
  topic: {{column: topic, width: 16}}
  category: {{column: category, width: 8}}
event_side:
  click: {{column: click, width: 8}}
  scenario: {{column: scenario, width: 8}}
context:
  request_scenario: {{column: scenario, table: scenario, width: 8}}
  hour: {{column: hour, width: 8}}
  weekday: {{column: weekday, width: 8}}
split: # the last tenth of the time is test, the tenth before validation
  by_time: {{validation: {validation}, test: {test}}}
max_rejected: 0.0
"""


def recipe_text(world: World) -> str:
    """YAML of the recipe."""
    validation, test = world.boundaries
    text = TEXT.format(distance=world.evidence_distance, seed=world.seed, validation=validation, test=test)
    return text.replace("\nlog: {", "\nraw: .\nlog: {")
