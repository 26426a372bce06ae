//! `backend = "auto"`: which backend is chosen for what, and what is said of it.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use karat::backend::{Backend, BackendError, Capability, Descriptor, Dtype, OpenConfig, Session};
use karat::run::{Asked, Backends, LoadedBackend, Origin, choose};
use karat::{Error, Result};

struct Described(Descriptor);

impl Backend for Described {
    fn describe(&self) -> Descriptor {
        self.0.clone()
    }
    fn open(&self, _: &OpenConfig) -> std::result::Result<Box<dyn Session>, BackendError> {
        Err(BackendError::unsupported("a choice opens nothing"))
    }
}

/// The backends as they describe themselves, but for those that are `missing`.
struct There<'a> {
    missing: &'a [&'a str],
}

impl Backends for There<'_> {
    fn backend(&self, name: &str) -> Result<LoadedBackend> {
        use Capability::*;
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let trained = ["qwen3", "qwen2", "llama"];
        let wide = ["qwen3", "qwen2", "llama", "mistral"];
        let (capabilities, devices, dtypes, families) = match name {
            _ if self.missing.contains(&name) => return Err(Error::usage("not there")),
            "native" => {
                let does = vec![Score, Generate, TrainFull, TrainLora];
                (does, strings(&["cuda", "cpu"]), vec![Dtype::F32, Dtype::Bf16], strings(&trained))
            }
            "candle" => {
                let does = vec![Score, Generate, TrainFull, TrainLora, Gguf];
                (does, strings(&["cpu"]), vec![Dtype::F32], strings(&wide))
            }
            "onnxruntime" => {
                let dtypes = vec![Dtype::F32, Dtype::Bf16, Dtype::F16];
                (vec![Score, Generate, Export], strings(&["cpu"]), dtypes, strings(&trained))
            }
            _ => return Err(Error::usage("not there")),
        };
        let described = Descriptor {
            name: name.into(),
            capabilities,
            devices,
            dtypes,
            model_families: families,
            ..Descriptor::default()
        };
        Ok(LoadedBackend { backend: Arc::new(Described(described)), origin: Origin::default() })
    }
}

#[test]
fn auto_is_the_fastest_backend_that_does_what_is_asked_and_says_what_the_faster_ones_lack() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, file: &str, text: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(file), text).unwrap();
        folder
    };
    let qwen3 = folder("qwen3", "config.json", r#"{"model_type": "qwen3"}"#);
    let mistral = folder("mistral", "config.json", r#"{"model_type": "mistral"}"#);
    let exported = folder("exported", "karat-onnx.json", "{}");
    let gguf = folder("gguf", "model.gguf", "");
    let view = folder("view", "model.gguf", "");
    std::fs::write(view.join("config.json"), r#"{"model_type": "qwen3"}"#).unwrap();
    let unknown = folder("unknown", "config.json", r#"{"model_type": "t5"}"#);
    let scores = &[Capability::Score, Capability::Generate][..];
    let trains = &[Capability::TrainLora][..];
    let ask = |model, capabilities, dtype, device, missing| {
        choose(&Asked { model, capabilities, dtype, device }, &There { missing })
    };
    for (model, capabilities, dtype, device, missing, name, words) in [
        (&qwen3, scores, Dtype::F32, "cpu", &[][..], "native", "the fastest"),
        (&qwen3, trains, Dtype::Bf16, "cuda:0", &[], "native", "the fastest"),
        (&qwen3, scores, Dtype::F16, "cpu", &[], "onnxruntime", "native does not compute in f16"),
        (&qwen3, scores, Dtype::F32, "cpu", &["native"], "candle", "native is not there"),
        (&mistral, scores, Dtype::F32, "auto", &[], "candle", "native does not know model_type \"mistral\""),
        (&exported, scores, Dtype::F32, "cpu", &[], "onnxruntime", "candle opens no exported graphs"),
        (&gguf, scores, Dtype::F32, "cpu", &[], "candle", "native does not run a GGUF file"),
        (&view, scores, Dtype::F32, "cpu", &[], "candle", "native does not run a GGUF file"),
    ] {
        let chosen = ask(model, capabilities, dtype, device, missing).unwrap();
        assert_eq!(chosen.name, name, "{}", chosen.why);
        assert!(chosen.why.contains(words), "{}", chosen.why);
    }
    for (model, capabilities, dtype, device, words) in [
        (&unknown, scores, Dtype::F32, "cpu", "onnxruntime does not know model_type \"t5\""),
        (&mistral, scores, Dtype::F32, "cuda:0", "candle was not built for cuda"),
        (&exported, trains, Dtype::F32, "cpu", "onnxruntime cannot train lora"),
    ] {
        let error = ask(model, capabilities, dtype, device, &[]).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}
