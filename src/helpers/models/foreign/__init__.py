"""Foreign files: what other people's configurations, tokenizers and chat templates may make a library raise, and how it is said.

- `boundary`: the one place where a library's exception becomes one line; `culprit`: the file and field that made it
- `settings_file`: the configuration, as transformers reads it; `tokens`: the tokenizer; `templates`: the chat template, its clock
- `adapter_file`: the settings of an adapter; `fetched`: whether all of a model's files are there
"""
