//! Detects the language of a text like `langdetect` 1.0.9, a port of Shuyo's language-detection, with seed 0 (where the harness
//! calls it, the detector is not seeded, so that its verdicts vary from run to run).
//!
//! N-grams of up to three characters are drawn from the text at random, and the probability of every language is multiplied by
//! the frequency of the n-gram in it, until one language is certain; this is repeated seven times with different smoothing. The
//! draws are Python's, so that the result equals that of `DetectorFactory.seed = 0` bit for bit. The profiles and tables of
//! characters are the package's own files.

use std::collections::HashMap;
use std::path::Path;

use fancy_regex::Regex;
use serde::Deserialize;

use super::pattern::pattern;
use super::python_random::Random;
use crate::error::{Context, Error, Result};

pub(super) struct Languages {
    names: Vec<String>,
    /// For each n-gram, its share among the n-grams of its length in every language, in the order of `names`.
    grams: HashMap<String, Box<[f64]>>,
    characters: Characters,
    url: Regex,
    mail: Regex,
}

/// A file in `profiles/`.
#[derive(Deserialize)]
struct Profile {
    name: String,
    freq: HashMap<String, f64>,
    n_words: [f64; 3],
}

/// The normal forms of characters in the n-grams.
struct Characters {
    latin1_excluded: String,
    /// Maps many Chinese characters to one that represents their class.
    cjk: HashMap<char, char>,
    vietnamese: HashMap<(char, char), char>,
}

const ALPHA: f64 = 0.5;
const ALPHA_WIDTH: f64 = 0.05;
const TRIALS: usize = 7;
const MOST_DRAWS: usize = 1000;
const CERTAIN: f64 = 0.99999;
const BASE_FREQUENCY: f64 = 10000.0;
const LEAST_PROBABILITY: f64 = 0.1;
const LONGEST_TEXT: usize = 10000;

impl Languages {
    /// Reads the folder of the package `langdetect`: `profiles/` and `utils/messages.properties`.
    pub(super) fn open(package: &Path) -> Result<Languages> {
        let folder = package.join("profiles");
        let entries = std::fs::read_dir(&folder).context_at(&folder, "cannot list the profiles of languages")?;
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.context_at(&folder, "cannot list the profiles of languages")?.path());
        }
        paths.sort();
        let profile = |path: &std::path::PathBuf| -> Result<Profile> {
            let text = std::fs::read_to_string(path).context_at(path, "cannot read the profile of a language")?;
            serde_json::from_str(&text).context_at(path, "this is not the profile of a language")
        };
        let profiles = paths.iter().map(profile).collect::<Result<Vec<_>>>()?;
        let mut grams: HashMap<String, Box<[f64]>> = HashMap::new();
        for (language, profile) in profiles.iter().enumerate() {
            for (gram, count) in &profile.freq {
                let n = gram.chars().count();
                if (1..=3).contains(&n) {
                    let shares = grams.entry(gram.clone()).or_insert_with(|| vec![0.0; profiles.len()].into());
                    shares[language] = count / profile.n_words[n - 1];
                }
            }
        }
        Ok(Languages {
            names: profiles.into_iter().map(|profile| profile.name).collect(),
            grams,
            characters: Characters::open(&package.join("utils/messages.properties"))?,
            url: pattern(r"https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}")?,
            mail: pattern(r"[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}")?,
        })
    }

    /// The code of the language, such as `en`; `None` if the text has no known n-gram, and `unknown` if no language is likely.
    pub(super) fn of(&self, text: &str) -> Result<Option<&str>> {
        let grams = self.grams_of(&self.cleaned(text)?);
        if grams.is_empty() {
            return Ok(None);
        }
        let n = self.names.len();
        let mut random = Random::seeded(0);
        let mut mean = vec![0.0; n];
        for _ in 0..TRIALS {
            let alpha = ALPHA + random.gauss() * ALPHA_WIDTH;
            let mut probabilities = vec![1.0 / n as f64; n];
            for draw in 0.. {
                let shares = grams[random.below(grams.len())];
                for (probability, share) in probabilities.iter_mut().zip(shares) {
                    *probability *= alpha / BASE_FREQUENCY + share;
                }
                if draw % 5 == 0 && (normalise(&mut probabilities) > CERTAIN || draw >= MOST_DRAWS) {
                    break;
                }
            }
            mean.iter_mut().zip(&probabilities).for_each(|(mean, probability)| *mean += probability / TRIALS as f64);
        }
        let mut best: Option<(usize, f64)> = None;
        for (language, &probability) in mean.iter().enumerate() {
            if probability > LEAST_PROBABILITY && best.is_none_or(|(_, highest)| probability > highest) {
                best = Some((language, probability));
            }
        }
        Ok(Some(best.map_or("unknown", |(language, _)| self.names[language].as_str())))
    }

    /// The text without addresses and repeated spaces; and without Latin letters if another script prevails.
    fn cleaned(&self, text: &str) -> Result<Vec<char>> {
        let replaced = |pattern: &Regex, text: &str| match pattern.try_replacen(text, 0, " ") {
            Ok(replaced) => Ok(replaced.into_owned()),
            Err(error) => Err(Error::new("a text takes too long to be searched for addresses").caused_by(error)),
        };
        let text = replaced(&self.mail, &replaced(&self.url, text)?)?;
        let mut cleaned: Vec<char> = Vec::new();
        let mut before = None;
        for c in self.characters.composed(&text).into_iter().take(LONGEST_TEXT) {
            if c != ' ' || before != Some(' ') {
                cleaned.push(c);
            }
            before = Some(c);
        }
        let is_latin = |c: &char| ('A'..='z').contains(c);
        let is_other = |c: &char| *c >= '\u{300}' && !('\u{1e00}'..='\u{1eff}').contains(c);
        let n_latin = cleaned.iter().filter(|c| is_latin(c)).count();
        let n_other = cleaned.iter().filter(|c| !is_latin(c) && is_other(c)).count();
        if n_latin * 2 < n_other {
            cleaned.retain(|c| !is_latin(c));
        }
        Ok(cleaned)
    }

    /// The shares of all n-grams of a text that some language has, in the order of their ends; n-grams that end in two capitals
    /// are skipped.
    fn grams_of(&self, text: &[char]) -> Vec<&[f64]> {
        let mut found = Vec::new();
        let mut window = vec![' '];
        let mut is_capitals = false;
        for &c in text {
            let c = self.characters.normal(c);
            let last = window.last().copied().unwrap_or(' ');
            let is_fresh = last == ' ';
            if is_fresh {
                window.truncate(0);
                window.push(' ');
                is_capitals = false;
            } else if window.len() >= 3 {
                window.remove(0);
            }
            // A second space adds nothing.
            if !(is_fresh && c == ' ') {
                window.push(c);
                is_capitals = c.is_uppercase() && (is_capitals || last.is_uppercase());
            }
            if is_capitals {
                continue;
            }
            for n in 1..=window.len() {
                let gram: String = window[window.len() - n..].iter().collect();
                if gram != " "
                    && let Some(shares) = self.grams.get(&gram)
                {
                    found.push(&**shares);
                }
            }
        }
        found
    }
}

/// Scales the probabilities to sum 1, and returns the highest.
fn normalise(probabilities: &mut [f64]) -> f64 {
    let sum: f64 = probabilities.iter().sum();
    let mut highest = 0.0;
    for probability in probabilities {
        *probability /= sum;
        highest = f64::max(highest, *probability);
    }
    highest
}

impl Characters {
    fn open(path: &Path) -> Result<Characters> {
        let text = std::fs::read_to_string(path).context_at(path, "cannot read the table of characters")?;
        let table: HashMap<&str, String> =
            text.lines().filter_map(|line| line.trim().split_once('=')).map(|(key, value)| (key, unescaped(value))).collect();
        let get = |key: &str| {
            table.get(key).cloned().ok_or_else(|| Error::new(format!("the table of characters has no `{key}`")).at(path))
        };
        let mut cjk = HashMap::new();
        // A character in two lines belongs to the later one; the lines are in the order in which the package reads them.
        let mut classes: Vec<(Vec<u32>, &String)> = table
            .iter()
            .filter_map(|(key, value)| {
                let numbers = key.strip_prefix("NGram.KANJI_")?.split('_').map(|number| number.parse().ok());
                Some((numbers.collect::<Option<Vec<u32>>>()?, value))
            })
            .collect();
        classes.sort();
        for (_, class) in classes {
            let Some(first) = class.chars().next() else { continue };
            cjk.extend(class.chars().map(|c| (c, first)));
        }
        let letters: Vec<char> = get("TO_NORMALIZE_VI_CHARS")?.chars().collect();
        let mut vietnamese = HashMap::new();
        for mark in get("DMARK_CLASS")?.chars() {
            let composed = get(&format!("NORMALIZED_VI_CHARS_{:04X}", mark as u32))?;
            vietnamese.extend(letters.iter().zip(composed.chars()).map(|(letter, composed)| ((*letter, mark), composed)));
        }
        Ok(Characters { latin1_excluded: get("NGram.LATIN1_EXCLUDE")?, cjk, vietnamese })
    }

    /// Combines Vietnamese letters and their diacritics into single characters.
    fn composed(&self, text: &str) -> Vec<char> {
        let mut composed = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            let single = rest.peek().and_then(|mark| self.vietnamese.get(&(c, *mark)));
            if single.is_some() {
                rest.next();
            }
            composed.push(single.copied().unwrap_or(c));
        }
        composed
    }

    /// The normal form of a character: a space for one that is not a letter, and a common letter for all characters of some
    /// blocks.
    fn normal(&self, c: char) -> char {
        match c {
            '\0'..='\u{7f}' if !c.is_ascii_alphabetic() => ' ',
            '\u{80}'..='\u{ff}' if self.latin1_excluded.contains(c) => ' ',
            '\u{219}' => '\u{15f}',
            '\u{21b}' => '\u{163}',
            '\u{2000}'..='\u{206f}' => ' ',
            '\u{6cc}' => '\u{64a}',
            '\u{1ea0}'..='\u{1eff}' => '\u{1ec3}',
            '\u{3040}'..='\u{309f}' => '\u{3042}',
            '\u{30a0}'..='\u{30ff}' => '\u{30a2}',
            '\u{3100}'..='\u{312f}' | '\u{31a0}'..='\u{31bf}' => '\u{3105}',
            '\u{4e00}'..='\u{9fff}' => self.cjk.get(&c).copied().unwrap_or(c),
            '\u{ac00}'..='\u{d7af}' => '\u{ac00}',
            _ => c,
        }
    }
}

/// Replaces escapes such as `\u00AB` by their characters.
fn unescaped(text: &str) -> String {
    let mut parts = text.split("\\u");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let c = part.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
        match c {
            Some(c) => {
                out.push(c);
                out.push_str(&part[4..]);
            }
            None => out.push_str(part),
        }
    }
    out
}
