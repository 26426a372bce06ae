use super::*;

const Q0: &str = "model.layers.0.self_attn.q_proj";
const Q1: &str = "model.layers.1.self_attn.q_proj";
const DOWN1: &str = "model.layers.1.mlp.down_proj";

fn config(json: &str) -> LoraConfig {
    let config: LoraConfig = serde_json::from_str(json).unwrap();
    config.check().unwrap();
    config
}

/// The modules that get an adapter, with rank and scale.
fn adapted(json: &str) -> Vec<(&'static str, usize, f64)> {
    let config = config(json);
    let matcher = config.matcher().unwrap();
    let paths = [Q0, Q1, DOWN1, "lm_head"].into_iter();
    paths.filter_map(|path| matcher.adapter(path).unwrap().map(|shape| (path, shape.r, shape.scale))).collect()
}

fn paths(json: &str) -> Vec<&'static str> {
    adapted(json).into_iter().map(|(path, ..)| path).collect()
}

#[test]
fn targets_match_as_in_peft() {
    assert_eq!(paths(r#"{"target_modules": ["q_proj"]}"#), [Q0, Q1]);
    assert_eq!(paths(r#"{"target_modules": ["self_attn.q_proj", "down_proj"]}"#), [Q0, Q1, DOWN1]);
    assert_eq!(paths(r#"{"target_modules": ["model.layers.0.self_attn.q_proj"]}"#), [Q0]);
    assert_eq!(paths(r#"{"target_modules": ["proj"]}"#), [""; 0]);
    // A string must match the whole path.
    assert_eq!(paths(r#"{"target_modules": "model\\.layers\\.1\\..*(q|down)_proj"}"#), [Q1, DOWN1]);
    assert_eq!(paths(r#"{"target_modules": "q_proj"}"#), [""; 0]);
    assert_eq!(paths(r#"{"target_modules": "layers.*q_proj|.*down_proj"}"#), [DOWN1]);
    assert_eq!(paths(r#"{"target_modules": "All-Linear"}"#), [Q0, Q1, DOWN1]);
}

#[test]
fn what_is_excluded_or_of_another_layer_gets_no_adapter() {
    let all = r#""target_modules": "all-linear""#;
    assert_eq!(paths(&format!("{{{all}, \"exclude_modules\": [\"q_proj\"]}}")), [DOWN1]);
    assert_eq!(paths(&format!("{{{all}, \"exclude_modules\": \".*1.*\"}}")), [Q0]);
    assert_eq!(paths(&format!("{{{all}, \"modules_to_save\": [\"mlp\"]}}")), [Q0, Q1]);
    assert_eq!(paths(r#"{"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1}"#), [Q1, DOWN1]);
    assert_eq!(paths(r#"{"target_modules": ["q_proj"], "layers_to_transform": [0, 7]}"#), [Q0]);
    // PEFT asks for the layer only where the name is not the whole path.
    let whole = format!("{{\"target_modules\": [\"{Q1}\"], \"layers_to_transform\": [0]}}");
    assert_eq!(paths(&whole), [Q1]);
}

#[test]
fn patterns_give_other_ranks_and_alphas_and_must_not_disagree() {
    let json = r#"{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 16}, "alpha_pattern": {"mlp.*": 64}}"#;
    assert_eq!(adapted(json), [(Q0, 2, 4.0), (Q1, 4, 2.0), (DOWN1, 16, 4.0)]);
    let rank_stabilized = json.replacen("{", r#"{"use_rslora": true,"#, 1);
    assert_eq!(adapted(&rank_stabilized)[2], (DOWN1, 16, 16.0));
    // A key is the end of the path from a dot on, not any end.
    assert_eq!(adapted(r#"{"target_modules": ["q_proj"], "rank_pattern": {"proj": 1}}"#)[0].1, 8);
    let both = config(r#"{"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 3}}"#);
    let error = both.matcher().unwrap().adapter(Q0).unwrap_err().to_string();
    assert!(error.contains("rank_pattern") && error.contains(Q0), "{error}");
    let same = config(r#"{"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 2}}"#);
    assert_eq!(same.matcher().unwrap().adapter(Q0).unwrap().unwrap().r, 2);
}

#[test]
fn modules_are_trained_whole_by_the_end_of_their_path() {
    let config = config(r#"{"modules_to_save": ["norm", "lm_head"]}"#);
    let matcher = config.matcher().unwrap();
    for path in ["model.norm", "lm_head", "model.layers.0.input_layernorm", "model.layers.0.self_attn.q_norm"] {
        assert!(matcher.trained_whole(path), "{path}");
    }
    assert!(!matcher.trained_whole(Q0));
}

#[test]
fn a_configuration_that_cannot_be_is_refused_by_its_key() {
    for (json, word) in [
        (r#"{"r": 0}"#, "r:"),
        (r#"{"rank_pattern": {"q_proj": 0}}"#, "q_proj"),
        (r#"{"lora_dropout": 1.0}"#, "lora_dropout"),
        (r#"{"target_modules": []}"#, "target_modules"),
        (r#"{"target_modules": "(q_proj"}"#, "target_modules"),
        (r#"{"target_modules": "(?!x)q_proj"}"#, "look-around"),
        (r#"{"exclude_modules": "*"}"#, "exclude_modules"),
        (r#"{"target_modules": ".*", "layers_to_transform": [1]}"#, "layers_to_transform"),
        (r#"{"modules_to_save": [""]}"#, "modules_to_save"),
    ] {
        let config: LoraConfig = serde_json::from_str(json).unwrap();
        let said = config.check().unwrap_err().to_string();
        assert!(said.contains(word), "{json}: {said}");
    }
    for (json, word) in [
        (r#"{"init_lora_weights": "pissa"}"#, "pissa"),
        (r#"{"init_lora_weights": false}"#, "init_lora_weights"),
        (r#"{"target_modules": 3}"#, "list of module names"),
        (r#"{"use_kasa": true}"#, "use_kasa"),
    ] {
        let error = serde_json::from_str::<LoraConfig>(json).unwrap_err().to_string();
        assert!(error.contains(word), "{json}: {error}");
    }
}

#[test]
fn what_is_not_set_is_not_written() {
    let written = serde_json::to_value(LoraConfig::default()).unwrap();
    let keys: Vec<&String> = written.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"]);
    let all = config(
        r#"{"r": 2, "target_modules": "all-linear", "exclude_modules": ["k_proj"], "use_dora": true,
        "modules_to_save": ["norm"], "init_lora_weights": "gaussian", "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"q_proj": 1.5}}"#,
    );
    assert_eq!(config(&serde_json::to_string(&all).unwrap()), all);
    let toml = toml::to_string(&all).unwrap();
    assert_eq!(toml::from_str::<LoraConfig>(&toml).unwrap(), all);
}
