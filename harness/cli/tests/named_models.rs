//! Suites with models by name: trained here, brought along, and texts of any origin.

#![allow(clippy::unwrap_used)]

mod place;

use place::{Place, good, refused};
use serde_json::{Value, json};

const HEAD: &str = "name = \"many\"\n[data]\nfile = \"items.jsonl\"\nsplit = \"2:1\"\n[train]\nmax_steps = 2\n\
    learning_rate = 1e-2\n[stats]\nresamples = 200\n[eval]\nmax_new_tokens = 2\nmetrics = [\"nll\", \"rougeL\"]\n";

/// Two models that exist, one of texts, two trained ones.
fn five(place: &Place) -> String {
    let data: Value = serde_json::from_str(&good(place.karat(&["--json", "data", "alone.toml"]))).unwrap();
    assert!(data["evaluated_items"].as_u64().unwrap() > 0);
    let text = |i: u32| json!({"question": format!("q{i}"), "candidate": format!("a{i}")}).to_string() + "\n";
    place.put("texts.jsonl", &(0..12).map(text).collect::<String>());
    format!(
        "{HEAD}[models.start]\npath = \"base\"\nrole = \"base\"\n[models.theirs]\nadapter = \"theirs\"\n\
         [models.r2]\ntrain = {{ method = \"lora\", r = 2 }}\n[models.whole]\ntrain = {{ method = \"full\", learning_rate = 1e-3 }}\n\
         [models.texts]\npredictions = \"texts.jsonl\"\n[[compare]]\nbaseline = \"r2\"\ncandidate = \"whole\"\n"
    )
}

fn with_adapter() -> Place {
    let place = Place::new();
    place.put("alone.toml", &format!("{HEAD}[model]\nbase = \"base\"\n[train.lora]\nr = 4\n"));
    good(place.karat(&["run", "alone.toml", "--out", "earlier"]));
    let lora = place.root.join("earlier/models/lora").canonicalize().unwrap();
    std::fs::create_dir(place.root.join("theirs")).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(lora.join(name), place.root.join("theirs").join(name)).unwrap();
    }
    place
}

fn names<'a>(report: &'a Value, of: &str) -> Vec<&'a str> {
    report["models"].as_array().unwrap().iter().map(|m| m[of].as_str().unwrap()).collect()
}

#[test]
fn five_models_stand_in_one_report_in_the_order_of_the_suite() {
    let place = with_adapter();
    place.put("many.toml", &five(&place));
    let told = good(place.karat(&["--json", "run", "many.toml"]));
    let report = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    assert_eq!(names(report, "name"), ["start", "theirs", "r2", "whole", "texts"]);
    assert_eq!(names(report, "role"), ["base", "lora", "lora", "full", "other"]);
    let pairs: Vec<(&str, &str)> = report["comparisons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["baseline"].as_str().unwrap(), c["candidate"].as_str().unwrap()))
        .collect();
    let against = ["theirs", "r2", "whole", "texts"].map(|name| ("start", name));
    assert_eq!(pairs, [&against[..], &[("r2", "whole")]].concat());
    // Nobody knows how the texts were asked, and that is said where they are compared.
    let allowed = |at: usize| report["comparisons"][at]["allowed"].as_array().map_or(0, Vec::len);
    assert_eq!((allowed(0), allowed(3)), (0, 3), "{}", report["comparisons"][3]);
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("by their question") && warnings.contains("were brought along"), "{warnings}");
    // The other trainings are what they are alone: the same recipe under another name.
    let value = |report: &Value, model: &str| report["metrics"][0]["models"][model]["value"].clone();
    let told = good(place.karat(&["--json", "run", "alone.toml", "--set", "train.lora.r=2", "--out", "o"]));
    let alone = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    assert_eq!(value(report, "r2"), value(alone, "lora"));
    assert_eq!(value(report, "start"), value(alone, "base"));
    // A model of the run by its name; texts alone have no folder.
    assert!(place.root.join("runs/many/models/whole/model.safetensors").is_file());
    assert!(!place.root.join("runs/many/models/texts").exists());
    // Nothing is done twice, and a model that goes leaves no results.
    let again = place.karat(&["run", "many.toml", "--set", "models.whole=false"]).output().unwrap();
    let told = place::said(&again);
    assert_eq!(again.status.code(), Some(2), "[[compare]] names it still: {told}");
    place.put("many.toml", &five(&place).replace("[[compare]]\nbaseline = \"r2\"\ncandidate = \"whole\"\n", ""));
    let again = place.karat(&["run", "many.toml", "--set", "models.whole=false"]).output().unwrap();
    assert!(again.status.success() && !place::said(&again).contains("step 1"), "{}", place::said(&again));
    assert!(!place.root.join("runs/many/results/whole.json").exists());
    let page = std::fs::read_to_string(place.root.join("runs/many/report/report.html")).unwrap();
    assert!(page.contains("compact") && page.contains("texts"));
}

#[test]
fn a_model_starts_from_another_that_is_trained_here_whatever_the_order() {
    let place = Place::new();
    let suite = format!(
        "{HEAD}[models.second]\ntrain = {{ method = \"lora\", from = \"first\", r = 2 }}\n\
         [models.first]\ntrain = {{ method = \"full\", from = \"start\" }}\n[models.start]\npath = \"base\"\n"
    );
    place.put("chain.toml", &suite);
    let told = good(place.karat(&["--json", "run", "chain.toml"]));
    let report = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    assert_eq!(names(report, "name"), ["second", "first", "start"]);
    assert_eq!(names(report, "role"), ["lora", "full", "base"]);
    let baselines: Vec<&str> =
        report["comparisons"].as_array().unwrap().iter().map(|c| c["baseline"].as_str().unwrap()).collect();
    // What the others come from, then full against the one adapter.
    assert_eq!(baselines, ["start", "start", "second"]);
    // The adapter lies on the checkpoint that the other training left.
    let value = |model: &str| report["metrics"][0]["models"][model]["value"].as_f64().unwrap();
    assert!(value("second") != value("first") && value("first") != value("start"));
    let scored =
        good(place.karat(&["score", "--model", "many:first", "--adapter", "many:second", "--input", "rows.jsonl"]));
    let plain = good(place.karat(&["score", "--model", "many:first", "--input", "rows.jsonl"]));
    assert_ne!(scored, plain);
}

#[test]
fn a_suite_of_checkpoints_from_elsewhere_trains_nothing() {
    let place = with_adapter();
    let suite = "name = \"elsewhere\"\n[data]\nheldout = \"items.jsonl\"\n[stats]\nresamples = 100\n[eval]\n\
        max_new_tokens = 2\nmetrics = [\"nll\", \"rougeL\"]\n[models.before]\npath = \"base\"\nrole = \"baseline\"\n\
        [models.run]\npath = \"earlier:lora\"\n[models.theirs]\npath = \"theirs\"\n";
    place.put("elsewhere.toml", suite);
    let told = good(place.karat(&["--json", "run", "elsewhere.toml"]));
    let report = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    assert_eq!(names(report, "role"), ["baseline", "lora", "lora"]);
    assert!(!report["warnings"].to_string().contains("no-base"), "{}", report["warnings"]);
    let values = &report["metrics"][0]["models"];
    assert_eq!(values["run"], values["theirs"], "the same adapter under two names");
    assert_ne!(values["run"], values["before"]);
    // `karat data` and `karat eval` know such a suite too.
    good(place.karat(&["data", "elsewhere.toml"]));
    good(place.karat(&["eval", "elsewhere.toml", "--model", "theirs", "--out", "p"]));
}

#[test]
fn a_model_that_is_asked_otherwise_is_refused_and_by_leave_told() {
    let place = Place::new();
    let suite = "name = \"asked\"\n[data]\nheldout = \"items.jsonl\"\n[stats]\nresamples = 100\n[eval]\n\
        max_new_tokens = 2\nmetrics = [\"nll\"]\n[models.plain]\npath = \"base\"\n[models.told]\npath = \"base\"\n\
        system_prompt = \"Answer in one word.\"\n";
    place.put("asked.toml", suite);
    refused(place.karat(&["run", "asked.toml"]), 2, "allow = [\"prompts\", \"template\"]");
    let allowed = ["--json", "run", "asked.toml", "--set", "eval.allow=[\"prompts\", \"template\"]"];
    let report = &serde_json::from_str::<Value>(&good(place.karat(&allowed))).unwrap()["report"];
    let differ = report["comparisons"][0]["allowed"].as_array().unwrap();
    assert_eq!(differ.iter().map(|m| m["what"].as_str().unwrap()).collect::<Vec<_>>(), ["prompts", "template"]);
    let values = &report["metrics"][0]["models"];
    assert_ne!(values["plain"], values["told"]);
    refused(place.karat(&["run", "asked.toml", "--set", "eval.allow=[\"colour\"]"]), 2, "colour");
}

#[test]
fn what_models_cannot_be_is_one_error_with_its_name() {
    let place = with_adapter();
    let base = "[models.start]\npath = \"base\"\n";
    for (models, word) in [
        ("", "names no model"),
        ("[models.start]\n", "path, adapter, predictions and train"),
        ("[models.start]\npath = \"base\"\npredictions = \"pairs.jsonl\"\n", "of which one says"),
        ("[models.start]\npath = \"base\"\nroel = \"base\"\n", "did you mean `role`?"),
        ("[models.start]\npath = \"base\"\nrole = \"main\"\n", "many.toml:12"),
        ("[models.start]\npath = \"bsae\"\n", "did you mean"),
        ("[models]\nstart = 3\n", "many.toml:11"),
        ("[models.start]\npath = \"base\"\n[models.t]\nadapter = \"base\"\n", "so it is no adapter"),
        ("[models.start]\npath = \"base\"\noptions = { library = \"/tmp/x.so\" }\n", "names code to load"),
        ("[models.start]\npath = \"base\"\noptions = { cache_dir = \"/tmp/x\" }\n", "names a folder to write"),
        ("[models.\"a/b\"]\npath = \"base\"\n", "cannot name a file"),
        ("[models.a]\npath = \"base\"\n[models.a]\npath = \"base\"\n", "duplicate key"),
        (
            "[models.a]\npath = \"base\"\nrole = \"base\"\n[models.b]\npath = \"base\"\nrole = \"base\"\n",
            "a and b both",
        ),
        ("[model]\nbase = \"base\"\n[models.base]\npath = \"base\"\n", "two models are called base"),
        ("[models.a]\ntrain = { method = \"lora\" }\n", "does not say which model"),
        (
            "[models.a]\ntrain = { method = \"full\", from = \"b\" }\n[models.b]\ntrain = { method = \"full\", from = \"a\" }\n",
            "a from b from a",
        ),
        (
            "[models.start]\npath = \"base\"\n[models.a]\ntrain = { method = \"lora\", from = \"strat\" }\n",
            "did you mean start?",
        ),
        (
            "[models.start]\npath = \"base\"\n[models.t]\nadapter = \"theirs\"\n[models.a]\ntrain = { method = \"lora\", from = \"t\" }\n",
            "which is an adapter",
        ),
        ("[models.start]\npath = \"base\"\n[models.a]\ntrain = { method = \"sft\" }\n", "unknown variant"),
        (
            "[models.start]\npath = \"base\"\n[models.a]\ntrain = { method = \"lora\", bf16 = true }\n",
            "dtype = \"bf16\" in [model]",
        ),
        ("[models.start]\npath = \"base\"\n[models.t]\npredictions = \"none.jsonl\"\n", "no such file"),
        (
            "[models.start]\npath = \"base\"\n[models.t]\npredictions = \"pairs.jsonl\"\ndtype = \"f32\"\n",
            "dtype has no effect",
        ),
        (
            "[models.start]\npath = \"base\"\n[[compare]]\nbaseline = \"start\"\ncandidate = \"lora\"\n",
            "[[compare]] names",
        ),
        ("[models.start]\npath = \"base\"\n[verdict]\nprimary = \"bleu\"\n", "does not measure"),
    ] {
        let head = HEAD.replace("[train]\nmax_steps = 2\nlearning_rate = 1e-2\n", "");
        let (head, models) = match models.split_once("[[compare]]") {
            _ if models.contains("train = ") => (HEAD.to_string(), models.to_string()),
            _ => (head, models.to_string()),
        };
        place.put("many.toml", &format!("{head}{models}"));
        refused(place.karat(&["data", "many.toml"]), 2, word);
    }
    // An adapter of another base.
    place.put("many.toml", &format!("{HEAD}{base}[models.a]\ntrain = {{ method = \"lora\", r = 2 }}\n"));
    good(place.karat(&["data", "many.toml"]));
    std::fs::create_dir(place.root.join("lost")).unwrap();
    let config = json!({"peft_type": "LORA", "base_model_name_or_path": "/nowhere/model", "r": 2, "lora_alpha": 4});
    place.put("lost/adapter_config.json", &config.to_string());
    place.put(
        "many.toml",
        &format!(
            "{}{base}[models.lost]\nadapter = \"lost\"\n",
            HEAD.replace("[train]\nmax_steps = 2\nlearning_rate = 1e-2\n", "")
        ),
    );
    refused(place.karat(&["run", "many.toml"]), 2, "the base of this adapter is not on this machine");
}

#[test]
fn priorities_say_which_model_one_would_ship() {
    let place = Place::new();
    let verdict = "[verdict]\nprimary = \"nll\"\nfloors = { rougeL = 100.0 }\n";
    place.put(
        "many.toml",
        &format!(
            "{}{verdict}[models.start]\npath = \"base\"\nrole = \"base\"\n[models.long]\ntrain = {{ method = \"full\", max_steps = 30 }}\n",
            HEAD.replace("2:1", "1:3")
        ),
    );
    let told = good(place.karat(&["--json", "run", "many.toml"]));
    let report = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    assert_eq!(report["recommendation"]["baseline"], "start");
    let better = report["comparisons"][0]["metrics"]["nll"]["verdict"] == "better";
    let ship = &report["recommendation"]["ship"];
    assert_eq!(ship.as_str(), better.then_some("long"), "{}", report["recommendation"]);
    let page = std::fs::read_to_string(place.root.join("runs/many/report/report.md")).unwrap();
    assert!(page.contains("By the suite's priorities"), "{page}");
}

#[test]
fn the_checkpoints_of_a_training_are_measured_over_its_steps() {
    let place = Place::new();
    let suite = "name = \"steps\"\n[data]\nfile = \"items.jsonl\"\n[model]\nbase = \"base\"\n[train]\nmax_steps = 6\n\
        save_every = 2\nsave_total_limit = 0\n[train.full]\n[train.lora]\nr = 2\n[stats]\nresamples = 100\n[eval]\n\
        checkpoints = \"all\"\nmax_new_tokens = 2\nmetrics = [\"nll\", \"rougeL\"]\n";
    place.put("steps.toml", suite);
    let run = |more: &[&str]| {
        let told = good(place.karat(&[&["--json", "run", "steps.toml"], more].concat()));
        serde_json::from_str::<Value>(&told).unwrap()["report"].clone()
    };
    let report = run(&[]);
    for (at, name) in [(1, "lora"), (2, "full")] {
        let checkpoints = report["models"][at]["training"]["checkpoints"].as_array().unwrap();
        assert_eq!(checkpoints.iter().map(|c| c["step"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4, 6], "{name}");
        // The checkpoint that the tables speak of is one of them, with the same numbers.
        let measured = &report["metrics"][0]["models"][name]["value"];
        assert!(checkpoints.iter().any(|c| c["metrics"]["nll"]["value"] == *measured), "{name}: {checkpoints:?}");
        assert_ne!(checkpoints[0]["metrics"]["nll"]["value"], checkpoints[2]["metrics"]["nll"]["value"], "{name}");
    }
    let page = std::fs::read_to_string(place.root.join("runs/steps/report/report.html")).unwrap();
    assert!(page.contains("Checkpoints over the training"));
    // Only some; the first run's answers serve.
    let some = run(&["--set", "eval.checkpoints=[2]"]);
    let steps = |report: &Value| report["models"][1]["training"]["checkpoints"].as_array().unwrap().len();
    assert_eq!((steps(&report), steps(&some)), (3, 2), "the one that is named, and the model itself");
    let last = run(&["--set", "eval.checkpoints=\"last\""]);
    assert!(last["models"][1]["training"]["checkpoints"].is_null());
    let nll = |report: &Value| report["metrics"][0]["models"]["lora"]["value"].clone();
    assert_eq!(nll(&last), report["models"][1]["training"]["checkpoints"][2]["metrics"]["nll"]["value"]);
    let missing = ["run", "steps.toml", "--set", "eval.checkpoints=[3]"];
    refused(place.karat(&missing), 2, "eval.checkpoints names step 3, which is not saved");
    refused(place.karat(&["run", "steps.toml", "--set", "eval.checkpoints=\"some\""]), 2, "a list of steps");
}

#[test]
fn replicates_of_a_recipe_are_trained_with_their_own_seeds() {
    let place = Place::new();
    let suite = "name = \"seeds\"\n[data]\nfile = \"items.jsonl\"\nsplit = \"2:1\"\n[model]\nbase = \"base\"\n[train]\n\
        max_steps = 2\nlearning_rate = 1e-2\nseeds = [1, 2, 3]\n[train.lora]\nr = 2\n[stats]\nresamples = 100\n[eval]\n\
        max_new_tokens = 2\nmetrics = [\"nll\", \"rougeL\"]\n";
    place.put("seeds.toml", suite);
    let told = good(place.karat(&["--json", "run", "seeds.toml"]));
    let report = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    assert_eq!(names(report, "name"), ["base", "lora.s1", "lora.s2", "lora.s3"]);
    assert_eq!(report["seeds"]["train lora.s2"], 2, "{}", report["seeds"]);
    let value = |report: &Value, name: &str| report["metrics"][0]["models"][name]["value"].clone();
    assert_ne!(value(report, "lora.s1"), value(report, "lora.s2"));
    // One seed is that seed's model, under the plain name.
    let told = good(place.karat(&["--json", "run", "seeds.toml", "--set", "train.seeds=[2]", "--out", "o"]));
    let one = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    assert_eq!(value(one, "lora"), value(report, "lora.s2"));
    refused(place.karat(&["run", "seeds.toml", "--set", "train.seeds=[2, 2]"]), 2, "names 2 twice");
}

#[test]
fn a_checkpoint_is_chosen_by_a_metric_of_the_validation_part_alone() {
    let place = Place::new();
    let suite = "name = \"chosen\"\n[data]\nfile = \"items.jsonl\"\nsplit = \"6:3:3\"\n[model]\nbase = \"base\"\n[train]\n\
        max_steps = 6\nsave_every = 2\nsave_total_limit = 0\nlearning_rate = 1e-2\ncheckpoint_metric = \"nll\"\n\
        [train.full]\n[stats]\nresamples = 100\n[eval]\nmax_new_tokens = 2\nmetrics = [\"rougeL\"]\n";
    place.put("chosen.toml", suite);
    let told = good(place.karat(&["--json", "run", "chosen.toml"]));
    let report = &serde_json::from_str::<Value>(&told).unwrap()["report"];
    let chosen = &report["models"][1]["training"]["chosen"];
    let values = chosen["values"].as_array().unwrap();
    assert_eq!((values.len(), &chosen["items"]), (3, &3.into()), "{chosen}");
    let best = values.iter().min_by(|a, b| a[1].as_f64().unwrap().total_cmp(&b[1].as_f64().unwrap())).unwrap();
    assert_eq!(chosen["step"], best[0], "{chosen}");
    let link = place.root.join("runs/chosen/models/full").canonicalize().unwrap();
    assert!(link.ends_with(format!("checkpoint-{}", chosen["step"])), "{}", link.display());
    let page = std::fs::read_to_string(place.root.join("runs/chosen/report/report.md")).unwrap();
    assert!(page.contains("on 3 validation items, not on the items below"), "{page}");
    let two = ["run", "chosen.toml", "--set", "data.split=9:1"];
    refused(place.karat(&two), 2, "held-out items choose nothing");
    refused(place.karat(&["run", "chosen.toml", "--set", "train.checkpoint=\"last\""]), 2, "has no effect");
}

#[test]
fn items_are_answered_several_times_at_a_temperature() {
    let place = Place::new();
    let suite = "name = \"sampled\"\n[data]\nheldout = \"items.jsonl\"\n[stats]\nresamples = 100\n[eval]\nsamples = 3\n\
        temperature = 1.0\nmax_new_tokens = 4\nmetrics = [\"nll\", \"rougeL\", \"exact_match\"]\n[model]\nbase = \"base\"\n";
    place.put("sampled.toml", suite);
    let run = |more: &[&str]| {
        let told = good(place.karat(&[&["--json", "run", "sampled.toml"], more].concat()));
        serde_json::from_str::<Value>(&told).unwrap()["report"].clone()
    };
    let report = run(&[]);
    let samples = &report["samples"];
    assert_eq!(samples["count"], 3);
    let exact = &samples["models"]["base"]["exact_match"];
    assert_eq!(exact["pass_at"].as_object().unwrap().keys().collect::<Vec<_>>(), ["1", "2", "3"], "{exact}");
    // What does not depend on what was generated has no samples, and the value of one answer.
    assert!(samples["models"]["base"]["nll"].is_null());
    let one = run(&["--set", "eval.samples=1", "--out", "one"]);
    assert_eq!(report["metrics"][0], one["metrics"][0]);
    assert!(one["samples"].is_null());
    // The first answers are those of one; all of them are the same again.
    let text = |folder: &str| std::fs::read_to_string(place.root.join(folder).join("results/base.json")).unwrap();
    let (three, one): (Value, Value) =
        (serde_json::from_str(&text("runs/sampled")).unwrap(), serde_json::from_str(&text("one")).unwrap());
    assert_eq!(three["predictions"], one["predictions"]);
    assert_ne!(three["samples"][0], three["samples"][1]);
    assert_eq!(run(&["--out", "again"])["samples"], report["samples"]);
    refused(place.karat(&["run", "sampled.toml", "--set", "eval.temperature=0.0"]), 2, "greedy ones are all the same");
}

#[test]
fn a_plan_says_what_a_run_would_do_and_does_nothing() {
    let place = Place::new();
    let suite = format!(
        "{HEAD}[models.start]\npath = \"base\"\n[models.r2]\ntrain = {{ method = \"lora\", r = 2, seeds = [3, 4] }}\n"
    );
    place.put("many.toml", &suite);
    let text = good(place.karat(&["run", "many.toml", "--plan"]));
    for said in [
        "r2.s3",
        "r2.s4",
        "a LoRA of rank 2 trained on start: 2 steps",
        "seed 4",
        ", the base",
        "four times out of five",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!place.root.join("runs").exists());
    let plan: Value = serde_json::from_str(&good(place.karat(&["--json", "run", "many.toml", "--plan"]))).unwrap();
    assert_eq!(plan["models"][1]["training"]["steps"], 2, "{plan}");
    assert!(plan["models"][1]["training"]["tokens"].as_u64().unwrap() > 0);
    assert_eq!(plan["power"]["tests"], 4);
    refused(place.karat(&["run", "many.toml", "--plan", "--fresh"]), 2, "--fresh");
}

#[test]
fn models_that_are_evaluated_into_one_folder_stand_in_one_report() {
    let place = with_adapter();
    let eval = |more: &[&str]| {
        let head = ["--json", "eval", "alone.toml", "--out", "gathered"];
        let told = good(place.karat(&[&head[..], more].concat()));
        serde_json::from_str::<Value>(&told).unwrap()["report"].clone()
    };
    eval(&["--model", "theirs", "--name", "tuned"]);
    let report = eval(&["--model", "base", "--name", "base"]);
    assert_eq!(names(&report, "name"), ["base", "tuned"]);
    assert_eq!(report["comparisons"][0]["candidate"], "tuned");
    let report = eval(&["--model", "base", "--name", "again"]);
    assert_eq!(names(&report, "name"), ["base", "again", "tuned"]);
    // The same numbers as alone; nothing of another question.
    let value = |name: &str| report["metrics"][0]["models"][name]["value"].clone();
    assert_eq!(value("again"), value("base"));
    let other = ["--model", "base", "--name", "other", "--set", "eval.max_new_tokens=3"];
    assert_eq!(names(&eval(&other), "name"), ["other"]);
    refused(place.karat(&["compare", "gathered:none", "gathered:base"]), 2, "no model `none`");
    // Texts join them, and a second call does not take the first one's away.
    for name in ["texts", "more"] {
        let text = |i: u32| json!({"id": format!("i{i}"), "candidate": format!("{name} {i}")}).to_string() + "\n";
        place.put(&format!("{name}.jsonl"), &(0..12).map(text).collect::<String>());
    }
    let gathered = |spec: &str| {
        let args = ["--json", "eval", "alone.toml", "--out", "gathered", "--predictions", spec];
        serde_json::from_str::<Value>(&good(place.karat(&args))).unwrap()["report"].clone()
    };
    assert_eq!(names(&gathered("texts.jsonl"), "name").len(), 5, "base, again, tuned, other and the texts");
    let report = gathered("more.jsonl");
    assert!(names(&report, "name").ends_with(&["texts", "tuned"]), "{:?}", names(&report, "name"));
    assert!(names(&report, "name").contains(&"more"));
}

#[test]
fn texts_of_one_item_under_the_id_of_another_are_refused() {
    let place = with_adapter();
    let data: Value =
        serde_json::from_str(&good(place.karat(&["--json", "data", "alone.toml", "--prompts", "p.jsonl"]))).unwrap();
    assert!(data["evaluated_items"].as_u64().unwrap() > 1);
    let prompts = std::fs::read_to_string(place.root.join("p.jsonl")).unwrap();
    let ids: Vec<String> = prompts
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_string())
        .collect();
    let question = ids[1].replace('i', "q");
    let line = json!({"id": ids[0], "question": question, "candidate": "x"}).to_string() + "\n";
    place.put("swapped.jsonl", &line);
    let args = ["eval", "alone.toml", "--predictions", "swapped.jsonl", "--out", "swapped"];
    refused(place.karat(&args), 6, &format!("the id is of `{}`, the question of `{}`", ids[0], ids[1]));
}

#[test]
fn what_would_stop_a_model_later_is_found_before_anything_is_trained() {
    let place = with_adapter();
    let start = "[models.start]\npath = \"base\"\nrole = \"base\"\n[models.long]\ntrain = { method = \"lora\", r = 2, max_steps = 1000000 }\n";
    place.put("broken.jsonl", "no json\n");
    std::fs::create_dir(place.root.join("odd")).unwrap();
    let config =
        json!({"peft_type": "LORA", "base_model_name_or_path": "../base", "r": 2, "lora_alpha": 4, "use_dora": 3});
    place.put("odd/adapter_config.json", &config.to_string());
    for (model, code, word) in [
        ("path = \"base\"\nbackend = \"tensorrt\"\n", 5, "tensorrt"),
        ("path = \"base\"\ndevice = \"gpu\"\n", 2, "was not built for gpu"),
        ("path = \"base\"\ndtype = \"f16\"\n", 2, "does not compute in f16"),
        ("train = { method = \"lora\" }\nbackend = \"onnxruntime\"\n", 2, "backend onnxruntime cannot train lora"),
        ("predictions = \"broken.jsonl\"\n", 6, "broken.jsonl:1"),
        ("adapter = \"odd\"\n", 6, "use_dora"),
    ] {
        place.put("late.toml", &format!("{HEAD}{start}[models.late]\n{model}"));
        for args in [&["run", "late.toml"][..], &["run", "late.toml", "--plan"]] {
            let text = refused(place.karat(args), code, word);
            assert!(text.contains("late"), "{text}");
        }
    }
    assert!(!place.root.join("runs/many/train").exists());
}

#[test]
fn an_adapter_is_one_whatever_lies_beside_it() {
    let place = with_adapter();
    // As axolotl writes it: the base's configuration beside the adapter.
    std::fs::copy(place.root.join("base/config.json"), place.root.join("theirs/config.json")).unwrap();
    let config = std::fs::read_to_string(place.root.join("theirs/adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["base_model_name_or_path"] = place.root.join("base").to_str().unwrap().into();
    place.put("theirs/adapter_config.json", &config.to_string());
    let score = |model: &str| good(place.karat(&["score", "--model", model, "--input", "rows.jsonl"]));
    let tuned = score("earlier:lora");
    assert_eq!(score("theirs"), tuned);
    // A whole model in the same folder, too: one is meant, and which is said.
    for file in std::fs::read_dir(place.root.join("base")).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, place.root.join("theirs").join(file.file_name().unwrap())).unwrap();
    }
    let mut command = place.karat(&["score", "--model", "theirs", "--input", "rows.jsonl"]);
    let output = command.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("holds a whole model and an adapter"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), score("base"));
    let suite = "name = \"both\"\n[data]\nheldout = \"items.jsonl\"\n[stats]\nresamples = 100\n[eval]\n\
        max_new_tokens = 2\nmetrics = [\"nll\"]\n[models.before]\npath = \"base\"\nrole = \"base\"\n\
        [models.run]\npath = \"earlier:lora\"\n[models.theirs]\nadapter = \"theirs\"\n";
    place.put("both.toml", suite);
    let report = &serde_json::from_str::<Value>(&good(place.karat(&["--json", "run", "both.toml"]))).unwrap()["report"];
    let values = &report["metrics"][0]["models"];
    assert_eq!(values["run"], values["theirs"]);
    assert_ne!(values["theirs"], values["before"]);
}
