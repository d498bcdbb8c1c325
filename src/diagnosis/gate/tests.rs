//! Tests the gates: weights by hand, the limits of sure and clueless models, masks, names.

use super::*;
use crate::diagnosis::population::Population;
use crate::error::Result;
use crate::random::uniform;

fn weight(gate: &str, logprob: f32, entropy: f32, entropy_topk: f32) -> f32 {
    let population = Population::of_thresholds(0.1, -2.0, 0.5).with_batch_tau(&mut [0.5]);
    let token = Token { logprob, entropy, entropy_topk, grad: 1.0, earlier: logprob };
    gate.parse::<Gate>().unwrap().bind(&population).unwrap().of(&token)
}

#[test]
fn every_formula_by_hand() {
    let half = 0.5f32.ln();
    for (gate, expected) in [
        ("sft", 1.0),
        ("eaft", 0.25),
        ("eaft:power:2", 0.0625),
        ("eaft:power:3", 0.015625),
        ("eaft:power:0.5", 0.5),
        // 1 / (1 + exp(-30 (0.25 - 0.17))) = 1 / (1 + exp(-2.4))
        ("eaft:sigmoid:30,0.17", 0.916_827_3),
        ("eaft:mask:0.15", 1.0),
        ("eaft:llama-factory", 0.249_644_36),
        ("eaft:axolotl", 0.748_933_1),
        ("pilot", 1.0),
        ("dft", 0.5),
        // 0.5^(1 / 0.5)
        ("talr", 0.25),
    ] {
        let weight = weight(gate, half, 0.8, 0.25);
        assert!((weight - expected).abs() < 1e-6, "{gate}: {weight}, expected {expected}");
    }
}

#[test]
fn both_ends() {
    // A model that is sure and wrong, and one that has no idea: (ln p, H, H~).
    let (sure, clueless) = ((-20.0, 0.0, 0.0), (-3.0, 3.0, 1.0));
    for (gate, at_sure, at_clueless) in [
        ("sft", 1.0, 1.0),
        ("eaft", 0.0, 1.0),
        ("eaft:power:3", 0.0, 1.0),
        ("eaft:sigmoid:30,0.17", 0.006_059_8, 1.0),
        ("eaft:mask:0.15", 0.0, 1.0),
        ("eaft:llama-factory", 0.0, 0.998_577_4),
        ("eaft:axolotl", 0.0, 2.995_732_3),
        ("pilot", 0.0, 1.0),
        ("dft", 2.061_153_6e-9, 0.049_787_07),
        ("talr", 0.01, 0.01),
    ] {
        let of = |(logprob, entropy, entropy_topk)| weight(gate, logprob, entropy, entropy_topk);
        assert!((of(sure) - at_sure).abs() < 1e-6, "{gate} sure: {}", of(sure));
        assert!((of(clueless) - at_clueless).abs() < 1e-6, "{gate} clueless: {}", of(clueless));
    }
    assert_eq!(weight("talr", 0.0, 0.0, 0.0), 1.0);
    assert_eq!(weight("dft", 0.0, 0.0, 0.0), 1.0);
}

#[test]
fn deft_by_hand() {
    let of = |p: f32, squares: f32| {
        let (logprob, grad) = (p.ln(), (1.0 - 2.0 * p + squares).sqrt());
        let token = Token { logprob, entropy: 1.0, entropy_topk: 0.5, grad, earlier: logprob };
        (Weight::Deft.of(&token), Weight::Deft.loss(&token))
    };
    // One of four equal tokens: a = 1/4, p^a = sqrt(1/2), (1 - p^a) / a = 4 - 2 sqrt(2).
    let (weight, loss) = of(0.25, 0.25);
    assert!((weight - 0.5f32.sqrt()).abs() < 1e-6 && (loss - (4.0 - 8f64.sqrt())).abs() < 1e-5, "{weight} {loss}");
    // The model is sure of another token: a = 1, where deft equals dft and its loss is 1 - p.
    let (weight, loss) = of(0.001, 1.0);
    assert!((weight - 0.001).abs() < 1e-6 && (loss - 0.999).abs() < 1e-5, "{weight} {loss}");
    // The model has no idea among a million tokens: a = 0 up to rounding, where deft equals sft.
    let (weight, loss) = of(1e-6, 1e-6);
    assert!((weight - 1.0).abs() < 2e-5 && (loss - 1e6f64.ln()).abs() < 2e-4, "{weight} {loss}");
    assert_eq!(of(1.0, 1.0), (1.0, 0.0));
}

#[test]
fn psft_stops_what_has_grown_enough() {
    let weight = Gate::Ratio { most: 1.28 }.bind(&Population::default()).unwrap();
    let of = |old: f32, now: f32| {
        let (logprob, earlier) = (now.ln(), old.ln());
        let token = Token { logprob, entropy: 1.0, entropy_topk: 0.5, grad: 1.0, earlier };
        (weight.of(&token), weight.loss(&token))
    };
    // Without an update since the snapshot, the gradient equals sft's to the bit.
    assert_eq!(of(0.3, 0.3), (1.0, -1.0));
    for (old, now, ratio, value) in [(0.4, 0.5, 1.25, -1.25), (0.5, 0.25, 0.5, -0.5), (0.25, 0.5, 0.0, -1.28)] {
        let (weight, loss) = of(old, now);
        assert!((weight - ratio).abs() < 1e-6 && (loss - value).abs() < 1e-6, "{old} -> {now}: {weight} {loss}");
    }
}

#[test]
fn stm_masks_by_what_the_base_model_believed() {
    let weight = "stm".parse::<Gate>().unwrap().bind(&Population::default()).unwrap();
    let of = |before: f32, now: f32| {
        let (logprob, earlier) = (now.ln(), before.ln());
        weight.of(&Token { logprob, entropy: 1.0, entropy_topk: 0.5, grad: 1.0, earlier })
    };
    // 1/p > 2.5 means p < 0.4, and the mask stays the same, whatever the model learns.
    assert_eq!([of(0.39, 0.39), of(0.39, 0.99), of(0.41, 0.41), of(0.41, 0.01)], [0.0, 0.0, 1.0, 1.0]);
}

#[test]
fn masks_take_away_what_is_at_or_below() {
    assert_eq!(weight("eaft:mask:0.15", -1.0, 1.0, 0.1), 0.0);
    assert_eq!(weight("pilot", -2.0, 0.5, 0.5), 0.0);
    assert_eq!(weight("pilot", -1.9, 0.5, 0.5), 1.0, "low entropy alone is kept");
    assert_eq!(weight("pilot", -9.0, 0.6, 0.5), 1.0, "low p alone is kept");
}

#[test]
fn what_is_typed_comes_back() {
    for gate in Gate::preview() {
        assert_eq!(gate.to_string().parse::<Gate>().unwrap(), gate);
    }
    assert_eq!("eaft:sigmoid".parse::<Gate>().unwrap().to_string(), "eaft:sigmoid:30,0.17");
    assert_eq!("eaft:power:1".parse::<Gate>().unwrap().to_string(), "eaft");
    for text in [
        "",
        "eaft:",
        "eaft:power",
        "eaft:power:-1",
        "eaft:power:x",
        "eaft:sigmoid:1",
        "eaft:mask:2",
        "power:2",
        "SFT",
        "dft:1",
        "asft",
    ] {
        let error = text.parse::<Gate>().unwrap_err();
        assert_eq!(error.exit_code(), 2, "{text}");
        assert!(error.to_string().contains("eaft:axolotl"), "{error}");
    }
}

#[test]
fn a_gate_without_its_population_says_what_it_needs() {
    for gate in ["pilot", "talr", "eaft:mask:0.15"] {
        let gate: Gate = gate.parse().unwrap();
        assert!(gate.bind(&Population::default()).unwrap_err().to_string().contains("this gate needs"));
    }
}

/// The gate that `--gate`, `--normaliser` and `--top-k` select.
fn asked(method: &str, gate: Option<&str>, normaliser: Option<Normaliser>, top_k: Option<usize>) -> Result<Gate> {
    method.parse::<Method>()?.gate_under(gate, normaliser, top_k)
}

const NORMALISERS: [Option<Normaliser>; 4] = [None, Some(Normaliser::LnK), Some(Normaliser::Three), Some(Normaliser::None)];

#[test]
fn a_mask_takes_its_share_under_every_normaliser_and_k() {
    // H~ of a thousand tokens, all different.
    let entropies: Vec<f32> = (0..1000).map(|i| uniform(3, i).powi(2)).collect();
    for k in [2, 20, 50] {
        for normaliser in NORMALISERS {
            for (method, curve, share) in
                [("mask", None, 0.15), ("eaft", Some("mask:0.15"), 0.15), ("eaft", Some("mask:0.4"), 0.4)]
            {
                let gate = asked(method, curve, normaliser, Some(k)).unwrap();
                let population = Population::default().with_topk_entropies(gate.top_k(), share, &entropies);
                let weight = gate.bind(&population).unwrap();
                let token = |entropy_topk| Token { logprob: -1.0, entropy: 1.0, entropy_topk, grad: 1.0, earlier: -1.0 };
                let masked = entropies.iter().filter(|&&entropy| weight.of(&token(entropy)) == 0.0).count();
                assert_eq!(masked as f64, share * 1000.0, "{gate}");
                // With entropies of another K, the error names the entropy that is missing.
                let other = Population::default().with_topk_entropies(k + 1, share, &entropies);
                let error = gate.bind(&other).unwrap_err().to_string();
                assert!(error.contains(&format!("top-{k} entropy")), "{error}");
            }
        }
    }
}

#[test]
fn a_normaliser_divides_once_however_it_is_asked_for() {
    // H~ = 0.5 for the top 20: 1.4979 nats.
    let at_half = |gate: Gate| {
        let token = Token { logprob: -1.0, entropy: 1.0, entropy_topk: 0.5, grad: 1.0, earlier: -1.0 };
        gate.bind(&Population::default()).unwrap().of(&token)
    };
    let nats = 0.5 * 20f32.ln();
    for (gate, normaliser, expected) in [
        (None, None, 0.5),
        (Some("linear"), Some(Normaliser::LnK), 0.5),
        (Some("linear"), Some(Normaliser::None), nats),
        (Some("axolotl"), None, nats),
        (Some("axolotl"), Some(Normaliser::None), nats),
        (Some("eaft:axolotl"), Some(Normaliser::None), nats),
        (Some("llama-factory"), Some(Normaliser::Three), nats / 3.0),
        (Some("power:2"), Some(Normaliser::Three), (nats / 3.0) * (nats / 3.0)),
        (Some("sigmoid:30,0.17"), Some(Normaliser::None), 1.0 / (1.0 + (-30.0 * (nats - 0.17)).exp())),
    ] {
        let found = at_half(asked("eaft", gate, normaliser, None).unwrap());
        assert!((found - expected).abs() < 1e-6, "{gate:?} {normaliser:?}: {found}, expected {expected}");
    }
    // axolotl's K is free.
    let of_50 = at_half(asked("eaft", Some("axolotl"), None, Some(50)).unwrap());
    assert!((of_50 - 0.5 * 50f32.ln()).abs() < 1e-6);
    assert_eq!(20f32.ln(), 2.995_732_3, "the constant that stood here before");
}

#[test]
fn what_means_nothing_together_is_refused_with_a_cure() {
    let three = Some(Normaliser::Three);
    for (method, gate, normaliser, top_k, what, cure) in [
        ("dft", Some("power:2"), None, None, "--gate power:2", "--method eaft"),
        ("mask", Some("mask:0.3"), None, None, "the method is mask", "--method eaft"),
        ("sft", None, three, None, "--normaliser 3.0", "Leave it out"),
        ("talr", None, None, Some(50), "--top-k 50", "Leave it out"),
        ("eaft", Some("axolotl"), three, None, "the normaliser none already", "--gate linear --normaliser 3.0"),
        ("eaft", Some("llama-factory"), None, Some(50), "--top-k is 50", "--gate linear --normaliser 3.0 --top-k 50"),
    ] {
        let error = asked(method, gate, normaliser, top_k).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(what) && text.contains(cure) && error.exit_code() == 2, "{text}");
    }
    // A file of an earlier run contains these for every method.
    assert_eq!(asked("sft", None, Some(Normaliser::LnK), Some(20)).unwrap(), Gate::One);
}

#[test]
fn the_guide_lists_the_methods() {
    let guide = include_str!("../../guide/training.md");
    let expected = methods_in_markdown();
    assert!(guide.contains(&expected), "src/guide/training.md should hold this table:\n{expected}");
}
