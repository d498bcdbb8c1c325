//! Compares verdicts with those of lm-evaluation-harness's own code, which `tests/fixtures/eval/written.py` recorded.

use serde_json::Value;

use super::{extract, math};

fn fixture(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/fixtures/eval/written.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

/// 200 answers; the harness extracts a number from most of them, and many are right.
#[test]
fn gsm8k_extracts_and_judges_as_the_harness_does() {
    let rows = fixture("gsm8k");
    let mut right = [0, 0];
    for row in &rows {
        let answer = text(row, "answer");
        let found = [extract::strict(answer), extract::flexible(answer)].map(|found| found.unwrap_or(extract::INVALID));
        let names = ["strict-match", "flexible-extract"];
        assert_eq!(found, names.map(|name| text(&row["found"], name)), "{row}");
        let verdicts = (extract::GSM8K.check)(&row["gold"], answer).unwrap();
        for (idx, (name, verdict)) in names.iter().zip(verdicts).enumerate() {
            assert_eq!(verdict.metric, format!("exact_match,{name}"));
            assert_eq!(f64::from(verdict.right), row["exact_match"][name].as_f64().unwrap(), "{name}: {row}");
            right[idx] += verdict.right;
        }
    }
    assert!(rows.len() == 200 && right.iter().all(|right| (40..160).contains(right)), "{right:?} of {}", rows.len());
}

#[test]
fn mathematics_is_judged_as_the_harness_does() {
    let rows = fixture("math");
    let mut right = [0, 0, 0];
    for row in &rows {
        let answer = text(row, "answer");
        let hendrycks = &(math::HENDRYCKS.check)(&row["solution"], answer).unwrap()[0];
        let aime = &(math::AIME.check)(&row["right"], answer).unwrap()[0];
        let minerva = &(math::MINERVA.check)(&row["solution"], answer).unwrap()[0];
        let normal = text(row, "minerva_found");
        let is_same = !normal.is_empty() && normal == text(row, "minerva_gold");
        assert_eq!(u64::from(hendrycks.right), row["hendrycks"].as_u64().unwrap(), "{row}");
        assert_eq!(u64::from(aime.right), row["aime"].as_u64().unwrap(), "{row}");
        assert_eq!(minerva.right, u32::from(is_same), "{row}");
        assert_eq!(math::minerva_normal_form(answer).unwrap(), normal, "{row}");
        right.iter_mut().zip([hendrycks, aime, minerva]).for_each(|(right, verdict)| *right += verdict.right);
    }
    assert!(rows.len() == 200 && right.iter().all(|right| (15..185).contains(right)), "{right:?} of {}", rows.len());
}
