"""Models: load one, let it speak, read its states, and judge what it said.

- `loading`, `built_in`: a folder as a model, and the models that have a name here
- `compute`, `checkpoints`: in which arithmetic; a folder fetched and checked, and its tensors
- `foreign/`: settings, tokenizers and templates of other people, and how their failures are said
- `formats/`: how models of other people are built and stored
- `encoding`, `shared_prefix`, `generation`, `activations`: texts as tokens, replies, hidden states
- `behaviour`, `utility`, `judges`, `judge_types`, `judge_llm`: refusals, severity, perplexity and accuracy
- `meter`: tokens that went through a model

May import: stats, data and the root files. A new judge is a class and one line in `judges.JUDGES`.
"""

from helpers import opener

__getattr__ = opener(__name__)
