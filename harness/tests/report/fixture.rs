//! A run as it might have been, made from a seed: three models, 24 items in Chinese and English,
//! training curves. The texts are assembled like a small model's: base rambles and is cut off, LoRA
//! and full answer with slips.

use std::collections::BTreeMap;

use karat::backend::{Dtype, GenerateConfig, SessionInfo, StepEvent, StopReason, TrainSummary};
use karat::eval::stats::StatsOptions;
use karat::eval::think::ThinkTags;
use karat::eval::{Item, ItemResult, Prediction};
use karat::report::*;

/// splitmix64: the same run on every machine.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Rounded to six decimals, so that sums of them print the same everywhere.
    pub fn around(&mut self, mean: f64, spread: f64) -> f64 {
        let x = mean + spread * (self.unit() + self.unit() + self.unit() - 1.5);
        (x * 1e6).round() / 1e6
    }
}

const DRUGS: [(&str, &str, &str, &str, &str); 6] = [
    ("二甲双胍", "双胍类", "抑制肝糖输出并改善胰岛素敏感性", "2型糖尿病", "eGFR 低于 30 时禁用"),
    ("阿司匹林", "抗血小板药", "不可逆抑制环氧合酶-1", "冠心病二级预防", "活动性消化道出血者禁用"),
    ("华法林", "维生素K拮抗剂", "抑制维生素K环氧化物还原酶", "心房颤动的卒中预防", "妊娠期禁用，须监测 INR"),
    ("Metformin", "biguanide", "lowers hepatic glucose output", "type 2 diabetes", "do not use when eGFR is below 30"),
    (
        "Lisinopril",
        "ACE inhibitor",
        "blocks formation of angiotensin II",
        "hypertension",
        "contraindicated in pregnancy",
    ),
    (
        "Warfarin",
        "vitamin K antagonist",
        "inhibits VKORC1",
        "stroke prevention in atrial fibrillation",
        "monitor the INR",
    ),
];

pub fn items(n: usize) -> Vec<Item> {
    let item = |i: usize| {
        let (name, class, mechanism, indication, caution) = DRUGS[i % DRUGS.len()];
        let round = i / DRUGS.len() + 1;
        let english = name.is_ascii();
        let (question, think, answer) = if english {
            (
                format!("Case {round}: how does {name} work, and what must be watched?"),
                format!(
                    "The user asks about {name}.\n\nIt is a {class}: it {mechanism}. It is used for {indication}. I must not forget the caution."
                ),
                format!("{name} is a {class}. It {mechanism} and is used for {indication}. Caution: {caution}."),
            )
        } else {
            (
                format!("病例{round}：{name}的作用机制是什么？使用时需要注意什么？"),
                format!(
                    "嗯，用户问的是{name}。\n\n它属于{class}，机制是{mechanism}，用于{indication}。还要记得说明注意事项。"
                ),
                format!("{name}属于{class}，通过{mechanism}发挥作用，用于{indication}。注意：{caution}。"),
            )
        };
        Item {
            id: format!("med-{i:03}"),
            question,
            think,
            answer,
            cluster: name.to_string(),
            choice: None,
            decision: None,
        }
    };
    (0..n).map(item).collect()
}

fn generated(item: &Item, role: Role, dice: &mut Dice) -> (String, StopReason) {
    let english = item.question.is_ascii();
    match role {
        Role::Base if dice.unit() < 0.4 => {
            let loop_ = if english { "The patient should ask a doctor. " } else { "患者应该咨询医生。" };
            (format!("<think>\n{}", loop_.repeat(9)), StopReason::Length)
        }
        Role::Base => {
            let text = if english {
                "This is a common medicine. It is good for health and should be taken daily."
            } else {
                "这是一种常用药物，对身体有益，建议每日服用，具体请咨询医生。"
            };
            (text.to_string(), StopReason::Stop)
        }
        _ => {
            let slip = dice.unit() < if role == Role::Lora { 0.5 } else { 0.3 };
            let answer = match (slip, english) {
                (false, _) => item.answer.clone(),
                // The dangerous kind: overlap stays high, the meaning turns round.
                (true, false) => item.answer.replace("禁用", "可用").replace("抑制", "促进"),
                (true, true) => item
                    .answer
                    .replace("do not use", "may be used")
                    .replace("contraindicated", "safe")
                    .replace("inhibits", "activates"),
            };
            (format!("<think>\n{}\n</think>\n\n{answer}", item.think), StopReason::Stop)
        }
    }
}

pub fn metrics() -> Vec<MetricInfo> {
    let metric = |name: &str, en: &str, zh: &str, unit: &str, direction, decimals, headline| MetricInfo {
        name: name.into(),
        title_en: en.into(),
        title_zh: zh.into(),
        unit: unit.into(),
        direction,
        decimals,
        headline,
    };
    use Direction::{Higher, Lower, Neutral};
    vec![
        metric("nll_answer", "Answer NLL", "回答负对数似然", "nats/token", Lower, 3, true),
        metric("nll_think", "Think NLL", "思考负对数似然", "nats/token", Lower, 3, false),
        metric("bleu_zh", "BLEU (zh)", "BLEU（zh）", "", Higher, 2, true),
        metric("rouge_l", "ROUGE-L F", "ROUGE-L F 值", "", Higher, 4, true),
        metric("vocab_f1", "Vocabulary F1", "词汇 F1", "", Higher, 4, true),
        metric("exact", "Exact match", "完全一致", "", Higher, 4, false),
        metric("key_points", "Key-point recall", "要点召回率", "", Higher, 4, false),
        metric("closed", "Well-formed thinking", "思考格式正确率", "", Higher, 4, false),
        metric("length", "Generated tokens", "生成词元数", "tokens", Neutral, 1, false),
    ]
}

fn values(role: Role, result: &Prediction, item: &Item, dice: &mut Dice) -> BTreeMap<String, Option<f64>> {
    let level = match role {
        Role::Base => 0.0,
        Role::Lora => 0.8,
        _ => 1.0,
    };
    let share = |x: f64| x.clamp(0.0, 1.0);
    let cut = result.stop == Some(StopReason::Length);
    let right = f64::from(u8::from(result.text.ends_with(&item.answer)));
    BTreeMap::from([
        ("nll_answer".to_string(), Some(dice.around(2.9 - 1.7 * level, 0.5))),
        ("nll_think".to_string(), Some(dice.around(2.4 - 1.1 * level, 0.4))),
        ("bleu_zh".to_string(), Some(if cut { 0.0 } else { dice.around(6.0 + 52.0 * level, 14.0).max(0.0) })),
        ("rouge_l".to_string(), Some(if cut { 0.0 } else { share(dice.around(0.18 + 0.5 * level, 0.2)) })),
        ("vocab_f1".to_string(), Some(if cut { 0.0 } else { share(dice.around(0.2 + 0.45 * level, 0.2)) })),
        ("exact".to_string(), Some(right)),
        // Undefined where there is no reasoning to judge.
        ("key_points".to_string(), result.text.contains("<think>").then(|| share(dice.around(0.1 + 0.6 * level, 0.3)))),
        ("closed".to_string(), Some(f64::from(u8::from(result.text.contains("</think>"))))),
        ("length".to_string(), result.ids.as_ref().map(|ids| ids.len() as f64)),
    ])
}

pub fn model(name: &str, role: Role, items: &[Item], seed: u64) -> ModelRun {
    let mut dice = Dice::new(seed);
    let results: Vec<ItemResult> = items
        .iter()
        .map(|item| {
            let (text, stop) = generated(item, role, &mut dice);
            let ids = Some((0..text.chars().count() as u32).collect());
            let prediction = Prediction { id: item.id.clone(), text, ids, stop: Some(stop) };
            let metrics = values(role, &prediction, item, &mut dice);
            ItemResult { prediction, reference: None, metrics }
        })
        .collect();
    let bleu: Vec<f64> = results.iter().filter_map(|r| r.metrics["bleu_zh"]).collect();
    let corpus = bleu.iter().sum::<f64>() / bleu.len().max(1) as f64 * 0.94;
    let interval = Some((corpus - 3.5, corpus + 4.0));
    ModelRun {
        name: name.into(),
        role,
        checkpoint_sha256: format!("{seed:02x}").repeat(32),
        fingerprints: None,
        samples: vec![],
        think_tags: ThinkTags::default(),
        session: Some(SessionInfo {
            device: "cpu".into(),
            dtype: Dtype::F32,
            threads: 2,
            kernels: vec!["matmul: gemm f32 avx2".into()],
            parameters: 3_412_224,
            adapter_parameters: if role == Role::Lora { 157_696 } else { 0 },
            vocab_size: 4096,
            max_positions: 2048,
            warnings: Vec::new(),
        }),
        pooled: BTreeMap::from([(
            "bleu_zh".to_string(),
            Pooled { value: (!bleu.is_empty()).then_some(corpus), interval },
        )]),
        items: results,
        adapter: None,
        training: (role != Role::Base).then(|| training(role, seed)),
        cost: Cost { score_seconds: Some(3.1), generate_seconds: Some(21.4), ..Cost::default() },
    }
}

fn training(role: Role, seed: u64) -> TrainingRecord {
    let mut dice = Dice::new(seed ^ 0x7a11);
    let steps = 120;
    let full = role == Role::Full;
    let events = (1..=steps)
        .map(|step| {
            let t = step as f64 / steps as f64;
            let floor = if full { 0.55 } else { 1.05 };
            StepEvent {
                step,
                epoch: 3.0 * t,
                loss: dice.around(floor + (3.3 - floor) * (-4.0 * t).exp(), 0.14),
                micro_losses: vec![],
                learning_rate: 1e-4 * (1.0 - t),
                grad_norm: dice.around(1.2, 0.5),
                label_tokens: 900,
                tokens: 1000 * step as u64,
                seconds: 0.4,
                memory: None,
            }
        })
        .collect();
    let evaluations = (0..=6)
        .map(|k| {
            let t = k as f64 / 6.0;
            let rise = if full { 0.55 * (t - 0.5f64).max(0.0) } else { 0.0 };
            (20 * k, dice.around(1.2 + 2.1 * (-4.2 * t).exp() + rise, 0.02))
        })
        .collect();
    TrainingRecord {
        step: Some(if full { 60 } else { 120 }),
        chosen: None,
        checkpoints: vec![],
        events,
        evaluations,
        summary: TrainSummary {
            last_checkpoint: "/somewhere/else/checkpoint-120".into(),
            best_checkpoint: Some(format!("/somewhere/else/checkpoint-{}", if full { 60 } else { 120 }).into()),
            steps,
            trainable_parameters: if full { 3_412_224 } else { 157_696 },
            tokens: 120_000,
            seconds: if full { 71.5 } else { 48.2 },
            peak_memory: Some(812 * 1024 * 1024),
        },
    }
}

pub fn inputs(items: &[Item], models: Vec<ModelRun>) -> Inputs<'_> {
    Inputs {
        language: Language::English,
        suite: Suite {
            name: "medical-r1".into(),
            title: "Medical reasoning, small".into(),
            description: "Made for testing Karat. No medical advice.".into(),
            sha256: "c0".repeat(32),
            sources: Vec::new(),
        },
        seeds: BTreeMap::from([("split".into(), 42), ("train".into(), 7), ("bootstrap".into(), 1)]),
        fingerprints: Fingerprints {
            data: "d1".repeat(32),
            prompts: "e2".repeat(32),
            template: "f3".repeat(32),
            decoding: "a4".repeat(32),
        },
        data: Data {
            files: vec![DataFile {
                name: "data/train.jsonl".into(),
                sha256: "ab".repeat(32),
                rows: 1234,
                read_as: None,
            }],
            splits: BTreeMap::from([("train".into(), 1210), ("test".into(), 24)]),
            split_rule: Some(SplitRule::Shuffled { seed: 42, shares: "9:1".into(), heldout_gives_loss: false }),
            bad_rows: vec![BadRow {
                file: "data/train.jsonl".into(),
                line: 17,
                reason: "field `answer` is missing".into(),
            }],
            bad_row_count: 1,
            leaks: vec![],
            audit: BTreeMap::from([("exact_leaks".into(), 0), ("near_leaks".into(), 0), ("duplicates".into(), 3)]),
        },
        decoding: Some(Decoding {
            template: "chat_template.jinja".into(),
            enable_thinking: Some(true),
            max_length: 512,
            generate: GenerateConfig::greedy(256, vec![2]),
        }),
        stats: StatsOptions { seed: 1, resamples: 2000, confidence: 0.95 },
        items,
        models,
        pairs: vec![],
        recipes: vec![],
        recipe_pairs: vec![],
        priorities: None,
        metrics: metrics(),
        examples: vec![],
        general: None,
        tokens: BTreeMap::new(),
        overfitting_margin: Inputs::OVERFITTING_MARGIN,
        warnings: vec![],
        environment: Environment {
            karat: "0.1.0".into(),
            machine: BTreeMap::from([("cpu".into(), "a CPU".into()), ("cores".into(), "2".into())]),
            plugins: vec![PluginInfo {
                name: "native".into(),
                version: "0.1.0".into(),
                sha256: "99".repeat(32),
                path: "/opt/libkarat_native.so".into(),
            }],
            seconds: BTreeMap::from([("train lora".into(), 48.2), ("train full".into(), 71.5)]),
            ..Environment::default()
        },
    }
}

pub fn three_models(items: &[Item]) -> Vec<ModelRun> {
    vec![
        model("base", Role::Base, items, 11),
        model("lora", Role::Lora, items, 12),
        model("full", Role::Full, items, 13),
    ]
}

pub fn report() -> Report {
    let items = items(24);
    build(&inputs(&items, three_models(&items))).unwrap()
}
