//! Examples below the help of each command: command lines to begin with.

pub const RUN: &str = "Examples:
  karat run medical-r1
  karat run my-experiment.toml --out runs/first --set train.lora.r=16
  karat run my-experiment.toml --device cuda:0 --dtype bf16";

pub const DOWNLOAD: &str = "Examples:
  karat download hf:Qwen/Qwen3-0.6B
  karat download ms:Qwen/Qwen3-0.6B
  karat download hf:owner/name-GGUF/name-Q4_0.gguf
  karat download hf:owner/data --dataset --revision refs/convert/parquet
  karat download hf:owner/name --include \"*.json\"
  karat --offline run my-experiment.toml

HF_ENDPOINT or MODELSCOPE_ENDPOINT names a mirror; HF_TOKEN or MODELSCOPE_API_TOKEN opens what is gated or private;
HF_HOME or MODELSCOPE_CACHE puts the caches elsewhere.";

pub const DATA: &str = "Examples:
  karat data my-experiment.toml
  karat data medical-r1 --show 3";

pub const TRAIN: &str = "Examples:
  karat train --model Qwen3-0.6B --data items.jsonl --out trained
  karat train --model Qwen3-0.6B --data items.jsonl --out trained --dtype bf16 --set r=16 --set learning_rate=2e-4
  karat train --model Qwen3-0.6B --method full --data items.jsonl --eval-data heldout.jsonl --out trained
  karat train --model Qwen3-0.6B --init-adapter trained/checkpoint-400 --data more.jsonl --out trained-on";

/// With the keys of `--set`.
pub fn train_long() -> String {
    format!(
        "{TRAIN}\n\nKeys of --set:\n  {}\n(what they mean: cargo doc -p karat --open, module suite; the names of an adapter are PEFT's)",
        karat::suite::training_keys()
    )
}

pub const SCORE: &str = "Examples:
  karat score --model Qwen3-0.6B \"The capital of France is Paris.\"
  karat score --model Qwen3-0.6B --adapter trained/checkpoint-400 --input rows.jsonl
  echo '{\"text\": \"Paris\"}' | karat score --model Qwen3-0.6B --input -";

pub const GENERATE: &str = "Examples:
  karat generate --model Qwen3-0.6B \"The capital of France is\"
  karat generate --model Qwen3-0.6B --chat \"What is the capital of France?\" --max-new-tokens 64
  karat generate --model trained/checkpoint-400 --input rows.jsonl --temperature 0.7 --top-p 0.9
  karat generate --model Qwen3-0.6B --input rows.jsonl --backend onnxruntime --dtype int4";

pub const EXPORT: &str = "Examples:
  karat export --model Qwen3-0.6B --out qwen3-onnx --dtype int4
  karat export --model trained/checkpoint-400 --out merged-onnx
  karat export --model Qwen3-0.6B --adapter a=first --adapter b=second --adapter-mode runtime --out qwen3-onnx";

pub const EVAL: &str = "Examples:
  karat eval my-experiment.toml --model Qwen3-0.6B --adapter trained/checkpoint-400 --name mine
  karat eval my-experiment.toml --model Qwen3-0.6B --backend onnxruntime --dtype int8
  karat eval my-experiment.toml --predictions other=answers.jsonl";

pub const COMPARE: &str = "Examples:
  karat compare runs/first:lora runs/second:lora
  karat compare answers-a.jsonl answers-b.jsonl
  karat compare --backends native,onnxruntime --model Qwen3-0.6B";

pub const REPORT: &str = "Examples:
  karat report runs/medical-r1 --format latex
  karat report runs/medical-r1 --splice README.md --check
  karat report runs/medical-r1 --language zh --out pages";

pub const CHECK: &str = "Examples:
  karat check medical-r1 --save-baseline main
  karat check medical-r1 --margin nll=0.05 --junit gate.xml
  karat check medical-r1 --bless --reason \"longer training\"";

pub const WATCH: &str = "Examples:
  karat watch outputs/sft --suite my-experiment.toml
  karat watch outputs/sft --suite my-experiment.toml --once --fail-fast
  karat watch outputs/sft --suite my-experiment.toml --baseline main:lora --margin nll=0.05
  karat watch outputs/sft --suite my-experiment.toml --device cuda:1 --dtype bf16 --interval 60";

pub const TRACK: &str = "Examples:
  karat track medical-r1 --to tensorboard
  karat track runs/mine --to tensorboard,swanlab --out curves
  karat track trained --to swanlab --project my-models";

pub const POWER: &str = "Examples:
  karat power medical-r1
  karat power runs/mine --margin rougeL=0.02 --margin exact_match=0.05
  karat power report.json --baseline base --power 0.9";

pub const MERGE: &str = "Examples:
  karat merge --model Qwen3-0.6B --adapter trained/checkpoint-400 --out merged
  karat merge --model trained/checkpoint-400 --out merged";

pub const METRICS: &str = "Examples:
  karat metrics --input pairs.jsonl --metrics bleu,rouge_jieba
  karat --json metrics --input - < pairs.jsonl";

pub const IMPORT: &str = "Examples:
  karat import --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2
  karat import --gguf model.gguf --out model --dtype bf16 --max-shard 2GB";

pub const DOCTOR: &str = "Examples:
  karat doctor
  karat doctor --fix
  karat --json doctor --determinism --model Qwen3-0.6B > certificate.json";
