//! Parses what the user types into a gate or a method, and prints it back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::bind::Gate;
use super::eaft::{Eaft, Normaliser};
use super::methods::{Beside, METHODS, Method, method_names};
use crate::engine::TOP_K;
use crate::error::{Error, Result};
use crate::spelling::nearest;

impl Gate {
    /// All gates of the preview: those of the methods that consist of nothing but a gate, and all variants of EAFT's.
    pub fn preview() -> Vec<Gate> {
        let of_method = |method: &Method| match method.gate {
            Gate::Eaft(Eaft::LINEAR) => Eaft::VARIANTS.map(Gate::Eaft).to_vec(),
            gate => vec![gate],
        };
        METHODS.iter().filter(|method| method.beside == Beside::Nothing).flat_map(of_method).collect()
    }
}

impl Method {
    /// Returns the gate of the method under these options, or an error if an option has no meaning for the method.
    pub fn gate_under(&self, gate: Option<&str>, normaliser: Option<Normaliser>, top_k: Option<usize>) -> Result<Gate> {
        let wrong = |what: String, cure: String| Err(Error::usage(what).cure(cure));
        if let Some(gate) = gate
            && self.gate != Gate::Eaft(Eaft::LINEAR)
        {
            return wrong(
                format!("--gate {gate} is a curve of EAFT, but the method is {}", self.name),
                "Leave it out, or give --method eaft.".to_owned(),
            );
        }
        let Gate::Eaft(own) = self.gate else {
            // Files of earlier runs contain the defaults.
            if let Some(normaliser) = normaliser.filter(|normaliser| *normaliser != Normaliser::default()) {
                return wrong(
                    format!("--normaliser {normaliser} is for EAFT's entropy, but the method is {}", self.name),
                    "Leave it out, or give --method eaft or mask.".to_owned(),
                );
            }
            if let Some(k) = top_k.filter(|k| *k != TOP_K) {
                return wrong(
                    format!("--top-k {k} is for EAFT's entropy, but the method is {}", self.name),
                    "Leave it out, or give --method eaft or mask.".to_owned(),
                );
            }
            return Ok(self.gate);
        };
        let Some(text) = gate else {
            return Ok(Gate::Eaft(Eaft { normaliser: normaliser.unwrap_or(own.normaliser), k: top_k.unwrap_or(own.k), ..own }));
        };
        let curve = text.trim_start_matches("eaft:");
        let named = Eaft::parse(curve).map_err(|what| unknown(&format!("eaft:{curve}"), &what))?;
        let is_a_program = named.normaliser != Normaliser::default();
        if let Some(normaliser) = normaliser.filter(|normaliser| is_a_program && *normaliser != named.normaliser) {
            return wrong(
                format!("--gate {curve} has the normaliser {} already, but --normaliser is {normaliser}", named.normaliser),
                format!("Leave --normaliser out, or give --gate linear --normaliser {normaliser}."),
            );
        }
        if let (Normaliser::Three, Some(k)) = (named.normaliser, top_k.filter(|k| *k != TOP_K)) {
            return wrong(
                format!("--gate {curve} uses the top {TOP_K}, as that program does, but --top-k is {k}"),
                format!("Leave --top-k out, or give --gate linear --normaliser {} --top-k {k}.", named.normaliser),
            );
        }
        let normaliser = normaliser.unwrap_or(named.normaliser);
        Ok(Gate::Eaft(Eaft { normaliser, k: top_k.unwrap_or(named.k), ..named }))
    }
}

/// Parses what a gate prints: the name of a method, and its parameters behind a colon.
impl FromStr for Gate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Gate> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let method = METHODS.iter().find(|method| method.name == name).ok_or_else(|| unknown(text, "no such name"))?;
        if method.beside != Beside::Nothing {
            return Err(unknown(text, "this method is not just a gate"));
        }
        match (method.gate, rest) {
            (gate, None) => Ok(gate),
            (Gate::Eaft(Eaft::LINEAR), Some(rest)) => Eaft::parse(rest).map(Gate::Eaft).map_err(|what| unknown(text, &what)),
            (_, Some(_)) => Err(unknown(text, &format!("{name} has no parameters"))),
        }
    }
}

fn unknown(text: &str, what: &str) -> Error {
    let names: Vec<String> = Gate::preview().iter().map(Gate::to_string).collect();
    let known = format!("Use one of {}, with any exponent, slope, center or share.", names.join(", "));
    Error::usage(format!("unknown gate `{text}`: {what}")).cure(known)
}

/// Prints the gate as the user would type it.
impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Eaft(eaft) => f.pad(&eaft.to_string()),
            gate => f.pad(METHODS.iter().find(|method| method.gate == *gate).map_or("", |method| method.name)),
        }
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Method> {
        METHODS.iter().find(|method| method.name == name).copied().ok_or_else(|| {
            let meant = nearest(name, METHODS.iter().map(|method| method.name));
            let meant = meant.map_or(String::new(), |meant| format!("Did you mean {meant}? "));
            Error::usage(format!("there is no method called `{name}`")).cure(format!("{meant}Give {}.", method_names()))
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// Serialises a method as its name.
impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Method, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
