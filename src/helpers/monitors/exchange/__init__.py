"""Exchange: monitors that were fitted elsewhere, as folders without a pickle, and how scikit-learn's become such folders.

- `direction_folders`: `direction.safetensors` beside `monitor.json`, written and read; which layer a convention means
- `sklearn_pipelines`: `export`, a fitted pipeline as such a folder; `plain_texts`: texts read without a chat template
"""

from helpers.monitors.exchange.sklearn_pipelines import export

__all__ = ["export"]
