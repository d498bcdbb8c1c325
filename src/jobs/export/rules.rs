//! Parses the rules of `--drop` and `--mask`, which change rows and tokens.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::diagnosis::kinds::ConflictKind;
use crate::error::{Error, Result};

/// Which rows to drop.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum DropRule {
    /// Rows whose conflict mass (the sum of -ln p - H over their conflicts, nats) is at least this.
    Mass(f64),
    /// Rows with a conflict of the kind.
    Kind(ConflictKind),
    /// Rows with these numbers, counted over the whole input.
    Rows(BTreeSet<u32>),
    /// Rows that the format cannot express, which are an error otherwise.
    Inexpressible,
}

/// Which tokens to exclude from the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum MaskRule {
    /// Every confident conflict.
    Conflicts,
    /// The conflicts of the kind.
    Kind(ConflictKind),
    /// Whole turns whose conflict mass is at least this.
    TurnMass(f64),
}

const DROP_CURE: &str = "Write mass=NATS, kind=KIND, rows=7,12,40 or inexpressible.";
const MASK_CURE: &str = "Write conflicts, kind=KIND or turn-mass=NATS.";

fn nats(text: &str, rule: &str) -> Result<f64> {
    text.parse()
        .ok()
        .filter(|nats: &f64| nats.is_finite() && *nats >= 0.0)
        .ok_or_else(|| Error::usage(format!("`{rule}`: expected a number of nats, 0 or more, found `{text}`")))
}

impl FromStr for DropRule {
    type Err = Error;

    fn from_str(rule: &str) -> Result<DropRule> {
        match rule.split_once('=') {
            None if rule == "inexpressible" => Ok(DropRule::Inexpressible),
            Some(("mass", value)) => Ok(DropRule::Mass(nats(value, rule)?)),
            Some(("kind", value)) => Ok(DropRule::Kind(value.parse()?)),
            Some(("rows", value)) => {
                let number = |text: &str| {
                    text.trim()
                        .parse::<u32>()
                        .map_err(|_| Error::usage(format!("`{rule}`: expected numbers of rows, found `{text}`")))
                };
                Ok(DropRule::Rows(value.split(',').map(number).collect::<Result<_>>()?))
            }
            _ => Err(Error::usage(format!("expected a rule for rows, found `{rule}`")).cure(DROP_CURE)),
        }
    }
}

impl FromStr for MaskRule {
    type Err = Error;

    fn from_str(rule: &str) -> Result<MaskRule> {
        match rule.split_once('=') {
            None if rule == "conflicts" => Ok(MaskRule::Conflicts),
            Some(("kind", value)) => Ok(MaskRule::Kind(value.parse()?)),
            Some(("turn-mass", value)) => Ok(MaskRule::TurnMass(nats(value, rule)?)),
            _ => Err(Error::usage(format!("expected a rule for tokens, found `{rule}`")).cure(MASK_CURE)),
        }
    }
}

impl fmt::Display for DropRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DropRule::Mass(nats) => write!(f, "--drop mass={nats}"),
            DropRule::Kind(kind) => write!(f, "--drop kind={kind}"),
            DropRule::Rows(_) => write!(f, "--drop rows"),
            DropRule::Inexpressible => write!(f, "--drop inexpressible"),
        }
    }
}

impl fmt::Display for MaskRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaskRule::Conflicts => write!(f, "--mask conflicts"),
            MaskRule::Kind(kind) => write!(f, "--mask kind={kind}"),
            MaskRule::TurnMass(nats) => write!(f, "--mask turn-mass={nats}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_by_hand() {
        assert_eq!("mass=2.5".parse::<DropRule>().unwrap(), DropRule::Mass(2.5));
        assert_eq!("rows=3, 1".parse::<DropRule>().unwrap(), DropRule::Rows(BTreeSet::from([1, 3])));
        assert_eq!("kind=number".parse::<MaskRule>().unwrap(), MaskRule::Kind(ConflictKind::Number));
        assert_eq!("turn-mass=0".parse::<MaskRule>().unwrap(), MaskRule::TurnMass(0.0));
        for rule in ["mass", "mass=-1", "mass=x", "rows=a", "kind=colour", "conflicts", ""] {
            assert_eq!(rule.parse::<DropRule>().unwrap_err().exit_code(), 2, "{rule}");
        }
        assert!("mass=1".parse::<MaskRule>().unwrap_err().to_string().contains("turn-mass"));
    }
}
