use super::*;
use proptest::prelude::*;

fn of(reference: &str, candidate: &str) -> KeyPoints {
    compare(&Statements::read(reference), &Statements::read(candidate))
}

#[test]
fn a_negated_statement_is_contradicted_though_its_words_are_all_there() {
    let points = of("孕妇可以使用青霉素治疗", "孕妇禁止使用青霉素治疗");
    assert_eq!((points.total, points.made), (1, 0));
    assert_eq!(points.contradicted, [Contradiction::Polarity]);
    let points =
        of("Metformin is contraindicated in severe renal impairment.", "Metformin is safe in severe renal impairment.");
    assert_eq!(points.contradicted, [Contradiction::Polarity]);
}

#[test]
fn a_yes_against_a_no_at_the_head_is_a_contradiction_in_both_languages() {
    for (reference, candidate, contradicted) in [
        ("不可以。黄疸的患者禁用利福平。", "合适。每次600毫克，每日1次。", 1),
        ("不合适。", "可以。", 1),
        ("可以使用。用于结核病。", "不能使用。", 1),
        ("No. Choose another drug.", "Yes. Adults usually take 10 mg.", 1),
        ("Yes. It fits.", "No. It is ruled out.", 1),
        ("不可以。", "不能使用。", 0),
        ("No. Choose another drug.", "The usual dose is 10 mg.", 0),
    ] {
        let points = of(reference, candidate);
        assert_eq!((points.heads, points.contradicted.len()), (1, contradicted), "{reference} {candidate}");
        let all = (points.total + 1) as f64;
        assert_eq!(points.share_contradicted(), Some(contradicted as f64 / all), "{reference} {candidate}");
    }
    assert_eq!(of("常用剂量为每次10毫克。", "不可以。").heads, 0);
}

#[test]
fn a_dose_must_agree_in_number_and_unit_and_may_differ_in_form() {
    let reference = "布洛芬成人剂量为每次0.4g";
    assert_eq!(of(reference, "成人布洛芬剂量：每次400毫克").made, 1);
    assert_eq!(of(reference, "布洛芬成人剂量为每次4g").contradicted, [Contradiction::Number]);
    assert_eq!(of(reference, "布洛芬成人剂量为每次0.4ml").contradicted.len(), 1);
}

#[test]
fn order_and_clause_breaks_do_not_matter() {
    let points = of("高血压患者应低盐饮食，每周运动3次。", "每周3次运动；饮食低盐，适合高血压患者。");
    assert_eq!((points.total, points.made, points.contradicted.len()), (2, 2, 0));
}

#[test]
fn a_point_is_looked_for_only_where_its_rare_terms_are() {
    let text = |from: usize| (from..from + 20_000).map(|i| format!("drug{i} heals, ")).collect::<String>();
    let (reference, candidate) = (Statements::read(&text(0)), Statements::read(&text(10_000)));
    let index = Index::of(&candidate.clauses);
    // Of two terms both must be found, so the rarer one must.
    let looked_at: usize = reference.clauses.iter().map(|point| index.near(point).len()).sum();
    assert_eq!(looked_at, 10_000, "clause by clause these are 400 million comparisons");
    let looped = of(&"血压正常，".repeat(60_000), &"血压正常，".repeat(60_000));
    assert_eq!((looped.total, looped.made), (60_000, 60_000));
}

proptest! {
    #[test]
    fn looking_where_rare_terms_are_finds_what_looking_everywhere_does(
        reference in prop::collection::vec(prop::collection::vec(0usize..12, 1..6), 0..12),
        candidate in prop::collection::vec(prop::collection::vec(0usize..12, 1..6), 0..12),
    ) {
        const WORDS: [&str; 12] = [
            "aspirin", "lowers", "pressure", "kidney", "not", "5 mg", "10 mg", "fever", "heart", "liver", "3 days", "pain",
        ];
        let text = |clauses: &[Vec<usize>]| {
            clauses.iter().map(|c| c.iter().map(|&w| WORDS[w]).collect::<Vec<_>>().join(" ") + "; ").collect::<String>()
        };
        let (of, by) = (Statements::read(&text(&reference)), Statements::read(&text(&candidate)));
        let everywhere: Vec<usize> = (0..by.clauses.len()).collect();
        let index = Index::of(&by.clauses);
        for point in of.key_points() {
            let near = index.near(point);
            prop_assert_eq!(point.is_made_by(&by.clauses, &near), point.is_made_by(&by.clauses, &everywhere));
            let contradicted = |at: &[usize]| at.iter().filter_map(|&i| point.contradicted_by(&by.clauses[i])).min();
            prop_assert_eq!(contradicted(&near), contradicted(&everywhere));
        }
    }
}

#[test]
fn an_empty_answer_makes_no_point_and_a_text_without_points_has_no_share() {
    assert_eq!(of("高血压患者应低盐饮食。", "").share_made(), Some(0.0));
    assert_eq!(of("", "高血压").share_made(), None);
    assert_eq!(of("阿司匹林", "阿司匹林").share_made(), Some(1.0));
}
