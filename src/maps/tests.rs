//! Tests whole figures with realistic, empty, single and extreme data, and the files that they write.
//!
//! Set `MAPS_OUT` to a folder to keep the pictures and look at them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::density::Density;
use super::gradient::Gradient;
use super::scene::Scene;
use super::tail::Tail;
use super::tokens::{FrequentTokens, TokenCount};
use super::*;
use crate::diagnosis::fidelity::Fidelity;

const VOCAB_SIZE: usize = 49_152;

/// The statistics of a token that the figures use.
struct Token {
    logprob: f32,
    entropy: f32,
    entropy_topk: f32,
    grad: f32,
    tail: f32,
    /// For K = 1..=64.
    entropies_by_k: Vec<f32>,
}

/// Tokens of distributions p_i ~ i^-power, jittered, over a few hundred tokens: most targets are sampled from the model, every
/// fiftieth is a token that the model did not expect.
fn realistic(n: usize) -> Vec<Token> {
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut tokens = Vec::with_capacity(n);
    for idx in 0..n {
        let power = 0.3 + 9.0 * random() * random().sqrt() + if idx % 3 == 0 { 4.0 } else { 0.0 };
        let weights: Vec<f64> = (1..=200).map(|rank| f64::from(rank).powf(-power) * (2.0 * random()).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let probabilities: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
        let mut sorted = probabilities.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let mut draw = random();
        let mut target = if idx % 50 == 0 { 1 + (random() * 40.0) as usize } else { 0 };
        while idx % 50 != 0 && target < 199 && draw > probabilities[target] {
            draw -= probabilities[target];
            target += 1;
        }
        let p = probabilities[target];
        let entropy: f64 = probabilities.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        tokens.push(Token {
            logprob: p.ln() as f32,
            entropy: entropy as f32,
            entropy_topk: top_k_entropy(&sorted, 20) / 20f32.ln(),
            grad: (1.0 - 2.0 * p + probabilities.iter().map(|p| p * p).sum::<f64>()).max(0.0).sqrt() as f32,
            entropies_by_k: (1..=64).map(|k| top_k_entropy(&sorted, k)).collect(),
            tail: probabilities.iter().filter(|other| **other <= p).sum::<f64>() as f32,
        });
    }
    tokens
}

fn top_k_entropy(sorted: &[f64], k: usize) -> f32 {
    let sum: f64 = sorted[..k].iter().sum();
    sorted[..k].iter().map(|p| p / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum::<f64>() as f32
}

/// NaN, infinities, an entropy above ln V, a probability above 1.
fn extreme() -> Vec<Token> {
    let token =
        |logprob, entropy, tail| Token { logprob, entropy, entropy_topk: 0.5, grad: 1.0, tail, entropies_by_k: vec![0.0, 0.5] };
    vec![
        token(f32::NAN, 1.0, f32::NAN),
        token(-1.0, f32::NAN, 0.5),
        token(-1.0, 50.0, 2.0),
        token(f32::NEG_INFINITY, 0.0, 0.0),
        token(1e-3, -1e-3, 1.0),
        token(0.0, f32::INFINITY, -1.0),
    ]
}

fn caption() -> Caption {
    Caption {
        model: "SmolLM2-135M-Instruct (Q4_1)".to_owned(),
        data: "demo.jsonl & 2 <more>".to_owned(),
        thresholds: "fixed: p 0.25, H 1.0 nat".to_owned(),
    }
}

fn quadrant(token: &Token) -> usize {
    match (token.logprob < 0.25f32.ln(), token.entropy < 1.0) {
        (true, true) => 0,
        (true, false) => 1,
        (false, true) => 2,
        (false, false) => 3,
    }
}

fn shares(tokens: &[Token], weight: impl Fn(&Token) -> f32) -> [f64; 4] {
    let mut sums = [0.0; 4];
    tokens.iter().for_each(|token| sums[quadrant(token)] += f64::from(weight(token)));
    sums
}

fn density_of(tokens: &[Token]) -> Density {
    let mut density = Density::new(VOCAB_SIZE);
    tokens.iter().for_each(|token| density.add(token.logprob, token.entropy));
    density
}

fn frequent_tokens(texts: &[&str]) -> FrequentTokens {
    let counts = |most: u64| {
        let token = |(idx, text): (usize, &&str)| TokenCount {
            id: 100 + idx as u32,
            text: (*text).to_owned(),
            count: most / (idx as u64 + 1),
        };
        texts.iter().enumerate().map(token).collect()
    };
    let most = if texts.is_empty() { [0; 4] } else { [61, 812, 40_713, 97] };
    FrequentTokens { tokens: most.map(counts), totals: most.map(|most| most * 6) }
}

/// All figures for the same tokens, by name.
fn scenes(tokens: &[Token], texts: &[&str]) -> Vec<(&'static str, Scene)> {
    let cuts = Cuts { probability: Some(0.25), entropies: vec![1.0], tail: Some(1e-3) };
    let mut gradient = Gradient::new(VOCAB_SIZE);
    let mut tail = Tail::default();
    for token in tokens {
        gradient.add(token.logprob, token.entropy, token.grad, token.entropy_topk);
        tail.add(token.tail, token.logprob);
    }
    let total: f64 = shares(tokens, |token| token.grad).iter().sum();
    let (of_tokens, of_grad, of_gated) = (
        shares(tokens, |_| 1.0).map(|n| n / tokens.len() as f64),
        shares(tokens, |token| token.grad).map(|sum| sum / total),
        shares(tokens, |token| token.grad * token.entropy_topk).map(|sum| sum / total),
    );
    vec![
        ("density", density::scene(&density_of(tokens), of_tokens, &cuts, &caption())),
        ("gradient", gradient::scene(&gradient, "EAFT, linear", of_grad, of_gated, &cuts, &caption())),
        ("tokens", tokens::scene(&frequent_tokens(texts), &caption())),
        ("fidelity", fidelity::scene(&fidelity_of(tokens), 20, &caption())),
        ("tail", tail::scene(&tail, &cuts, &caption())),
    ]
}

fn fidelity_of(tokens: &[Token]) -> Fidelity {
    let mut fidelity = Fidelity::default();
    tokens.iter().for_each(|token| fidelity.add(&token.entropies_by_k, token.entropy));
    fidelity
}

const TEXTS: [&str; 14] = [
    " the",
    "\n\n",
    ",",
    "中文",
    "🦀",
    "\u{fffd}",
    "<|im_end|>",
    " internationalization_of_everything",
    "\t\r\n",
    "\u{0}\u{7f}",
    " é",
    "שלום",
    "never",
    "shown",
];

fn out_folder() -> (Option<tempfile::TempDir>, PathBuf) {
    match std::env::var_os("MAPS_OUT") {
        Some(folder) => (None, folder.into()),
        None => {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().to_owned();
            (Some(folder), path)
        }
    }
}

/// Checks the PNG: width and height in its header, and that it is not blank. Returns the unescaped text elements of the SVG.
fn check_files(scene: &Scene, path: &Path) {
    let (png, svg) = (path.with_extension("png"), path.with_extension("svg"));
    scene.save(&png).unwrap();
    scene.save(&svg).unwrap();
    let bytes = fs::read(&png).unwrap();
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!([number(16), number(20)], [scene.width() as u32, scene.height() as u32]);
    let text = fs::read_to_string(&svg).unwrap();
    assert_eq!(well_formed_texts(&text), scene.texts(), "{}", svg.display());
    assert!(text.starts_with(&format!(r#"<svg width="{}" height="{}""#, scene.width(), scene.height())), "{}", &text[..100]);
}

/// The text elements of an XML document; panics if tags do not nest or text contains a bare `&`, `<` or control character.
fn well_formed_texts(xml: &str) -> Vec<String> {
    let (mut open, mut texts) = (Vec::new(), Vec::new());
    for part in xml.split_inclusive('>') {
        let (text, tag) = part.rsplit_once('<').unwrap_or((part, ""));
        assert!(!text.contains('<') && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
        assert!(plain.replace("&amp;", "").find('&').is_none(), "{text:?}");
        if open.last() == Some(&"text") {
            texts.push(plain.trim_end_matches('\n').trim_start_matches('\n').replace("&amp;", "&"));
        }
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), name.strip_suffix('>')),
            None if tag.ends_with("/>") || tag.is_empty() => {}
            None => open.push(tag.split([' ', '>']).next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?} left open");
    texts
}

#[test]
fn every_figure_of_realistic_data_is_drawn_in_both_formats_without_overlaps() {
    let tokens = realistic(20_000);
    let (_guard, folder) = out_folder();
    let begin = Instant::now();
    for (name, scene) in scenes(&tokens, &TEXTS) {
        check_files(&scene, &folder.join(name));
        scene.check_texts();
        let texts = scene.texts().join("\n");
        for expected in
            ["model: SmolLM2-135M-Instruct (Q4_1)", "data: demo.jsonl & 2 <more>", "thresholds: fixed: p 0.25, H 1.0 nat"]
        {
            assert!(texts.contains(expected), "{name}: {texts}");
        }
    }
    println!("all figures, both formats: {:?}", begin.elapsed());
}

/// The colours of the cells, and that of the bars beside the plane.
fn paints_of_data() -> Vec<scene::Paint> {
    (0..style::LogScale::STEPS).map(style::LogScale::paint).chain([style::BAR]).collect()
}

/// With a token in every cell, including those of the sharpest conflicts, or in none, no label covers a cell with tokens.
#[test]
fn no_text_hides_what_is_drawn() {
    let (_guard, folder) = out_folder();
    let mut everywhere = Vec::new();
    let grid = plane::grid(VOCAB_SIZE);
    let middle = |bins: &grid::Bins, idx: usize| bins.from + (bins.to - bins.from) * (idx as f64 + 0.5) / bins.count as f64;
    for (x, y) in (0..plane::X_BINS).flat_map(|x| (0..plane::Y_BINS).map(move |y| (x, y))) {
        let (logit, entropy) = (middle(&grid.x, x), middle(&grid.y, y).powi(2));
        // A cell that a bound crosses is included if one of its corners lies within the bounds.
        let reach = (grid.x.to - grid.x.from) / grid.x.count as f64;
        let is_possible = [-reach, 0.0, reach]
            .iter()
            .any(|by| (plane::lower_bound(logit + by)..=plane::upper_bound(logit + by, VOCAB_SIZE)).contains(&entropy));
        if is_possible {
            let logprob = -(-logit).exp().ln_1p();
            everywhere.push(Token {
                logprob: logprob as f32,
                entropy: entropy as f32,
                entropy_topk: 0.5,
                grad: 1.0,
                tail: logprob.exp() as f32,
                entropies_by_k: vec![0.0, 0.5],
            });
        }
    }
    let density = density_of(&everywhere);
    let conflicts = density.grid().cells[..plane::X_BINS / 4].iter().filter(|count| **count > 0.0).count();
    assert!(conflicts > 30, "{conflicts} cells along the lower edge");
    let panel = || landscape::Panel { name: "one of two".to_owned(), density: density.clone(), shares: [0.123; 4] };
    let cuts = Cuts { probability: Some(0.25), entropies: vec![1.0], tail: Some(1e-3) };
    let landscapes = landscape::scene(&[panel(), panel(), panel()], &cuts, &caption());
    for tokens in [everywhere, realistic(20_000)] {
        let drawn = scenes(&tokens, &TEXTS).into_iter().filter(|(name, _)| ["density", "gradient", "tail"].contains(name));
        for (name, scene) in drawn.chain([("landscapes", landscapes.clone())]) {
            assert_eq!(scene.texts_over(&paints_of_data()), [""; 0], "{name}");
            check_files(&scene, &folder.join(format!("{name}-{}", tokens.len())));
            scene.check_texts();
        }
    }
    // The check itself finds a label that covers a cell.
    let mut covered = density::scene(&density, [0.25; 4], &cuts, &caption());
    covered.text(400.0, 500.0, "here", scene::Text::body(style::INK));
    assert_eq!(covered.texts_over(&paints_of_data()), ["here"]);
}

#[test]
fn empty_single_and_extreme_data_are_drawn() {
    let (_guard, folder) = out_folder();
    for (kind, tokens) in [("empty", vec![]), ("single", realistic(1)), ("extreme", extreme())] {
        for (name, scene) in scenes(&tokens, &TEXTS[..tokens.len().min(1)]) {
            check_files(&scene, &folder.join(format!("{name}-{kind}")));
            scene.check_texts();
            let texts = scene.texts();
            assert_eq!(texts.contains(&"no tokens"), kind == "empty", "{name} {kind}: {texts:?}");
            assert!(!texts.iter().any(|text| text.starts_with("NaN") || text.contains("inf")), "{name} {kind}: {texts:?}");
        }
    }
}

#[test]
fn long_and_foreign_captions_stay_in_the_picture() {
    let caption = Caption { model: "模型".to_owned(), data: "a/very/long/path.jsonl, ".repeat(40), thresholds: String::new() };
    let scene = density::scene(&density_of(&[]), [f64::NAN; 4], &Cuts::default(), &caption);
    scene.check_texts();
    let texts = scene.texts().join("\n");
    assert!(texts.contains("model: ⟨U+6A21 578B⟩") && texts.contains("thresholds: not stated") && texts.contains('…'), "{texts}");
}

#[test]
fn cuts_of_every_preset_are_drawn() {
    let tokens = realistic(500);
    for (probability, entropies) in [
        (Some(0.25), vec![1.0]),
        (Some(0.003), vec![0.02]),
        (None, vec![0.5, 2.0]),
        (None, vec![f64::NAN]),
        (Some(2.0), vec![-1.0, 99.0]),
    ] {
        let scene = density::scene(&density_of(&tokens), [0.25; 4], &Cuts { probability, entropies, tail: None }, &caption());
        scene.check_texts();
        assert_eq!(scene.texts_struck_by(style::CUT), [""; 0]);
        let folder = tempfile::tempdir().unwrap();
        check_files(&scene, &folder.path().join("density"));
    }
}

#[test]
fn a_merged_density_equals_the_whole() {
    let tokens = realistic(300);
    let (mut first, second) = (density_of(&tokens[..100]), density_of(&tokens[100..]));
    first.merge(&second);
    assert_eq!(first.grid(), density_of(&tokens).grid());
    assert_eq!(first.grid().tally.added, 300);
}

#[test]
fn extreme_values_are_clipped_or_ignored_and_counted() {
    let density = density_of(&extreme());
    let tally = density.grid().tally;
    assert_eq!((tally.added, tally.ignored, tally.clipped), (4, 2, 4));
    let (top, right) = (plane::Y_BINS - 1, plane::X_BINS - 1);
    assert_eq!((density.grid().get(0, 0), density.grid().get(right, 0), density.grid().get(right, top)), (1.0, 1.0, 1.0));
}

#[test]
fn a_gate_scales_the_gradient_and_a_broken_weight_drops_the_token_from_both() {
    let mut gradient = Gradient::new(VOCAB_SIZE);
    gradient.add(-1.0, 1.0, 0.8, 0.25);
    gradient.add(-2.0, 0.5, 1.2, 0.5);
    gradient.add(-2.0, 0.5, 1.0, f32::NAN);
    // f32 inputs: 0.8 and 1.2 have errors of 1e-8.
    assert!((gradient.plain().total() - 2.0).abs() < 1e-6 && (gradient.gated().total() - 0.8).abs() < 1e-6);
    assert_eq!((gradient.plain().tally.ignored, gradient.gated().tally.ignored), (1, 1));
}
