//! The spelling of choices: the names of an enum's variants, and a suggestion for a name that does not exist.

use crate::error::Error;

/// Gives the variants of an enum their names, which are used alike in output, on the command line and in files. Names after a `|`
/// are spellings of other programs, which are read but never written.
macro_rules! named {
    ($vis:vis $choice:ident, $what:literal: $($variant:ident = $name:literal $(| $other:literal)*),+ $(,)?) => {
        impl $choice {
            /// All variants, in the order in which messages list them.
            $vis const ALL: [$choice; [$($name),+].len()] = [$($choice::$variant),+];

            /// The name in options and files.
            $vis const fn name(self) -> &'static str {
                match self {
                    $($choice::$variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $choice {
            type Err = $crate::error::Error;

            fn from_str(text: &str) -> $crate::error::Result<$choice> {
                match text {
                    $($name $(| $other)* => Ok($choice::$variant),)+
                    _ => Err($crate::spelling::unknown($what, text, &$choice::ALL.map($choice::name))),
                }
            }
        }

        impl serde::Serialize for $choice {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $choice {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<$choice, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use named;

/// The error for `text`, which is none of `names`.
pub(crate) fn unknown(what: &str, text: &str, names: &[&str]) -> Error {
    let meant = nearest(text, names.iter().copied()).map_or(String::new(), |meant| format!("Did you mean {meant}? "));
    Error::usage(format!("expected {what}, found `{text}`")).cure(format!("{meant}Known are {}.", names.join(", ")))
}

/// The name nearest to what was typed, if it is near enough to have been meant: at most one typo per four letters (a letter
/// missing, added, wrong or swapped with its neighbour), or one of the two is the beginning of the other, such as `evaluate` for
/// `eval`. A beginning that goes on with a further word, such as `model-type` after `model`, is another name; and in a name of two
/// letters, one typo makes another word.
pub(crate) fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let goes_on = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| !rest.starts_with(['-', '_']));
    let slips = |name: &str| match name.len() >= 4 && (goes_on(typed, name) || typed.len() >= 3 && goes_on(name, typed)) {
        true => 1,
        false => strsim::osa_distance(typed, name),
    };
    let near = names.into_iter().map(|name| (slips(name), name));
    let near = near.filter(|(slips, name)| name.len() > 2 && *slips * 4 <= name.len().max(4));
    near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Colour {
        Red,
        DarkGreen,
    }

    named! { Colour, "a colour": Red = "red", DarkGreen = "dark-green" | "dark_green" }

    #[test]
    fn names_are_printed_typed_and_written_alike_and_others_are_answered_with_them() {
        for colour in Colour::ALL {
            assert_eq!(colour.to_string().parse::<Colour>().unwrap(), colour);
            let written = serde_json::to_value(colour).unwrap();
            assert_eq!(written, colour.name());
            assert_eq!(serde_json::from_value::<Colour>(written).unwrap(), colour);
        }
        assert_eq!("dark_green".parse::<Colour>().unwrap(), Colour::DarkGreen);
        assert_eq!(format!("[{:>5}]", Colour::Red), "[  red]");
        let error = "dark-gren".parse::<Colour>().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let told = error.to_string();
        for expected in ["expected a colour, found `dark-gren`", "Did you mean dark-green? Known are red, dark-green."] {
            assert!(told.contains(expected), "{told}");
        }
        let of_file = serde_json::from_str::<Colour>("\"blue\"").unwrap_err().to_string();
        assert!(of_file.contains("expected a colour, found `blue`"), "{of_file}");
    }

    #[test]
    fn slips_are_seen_through_and_other_words_are_not() {
        let names = ["eval", "diff", "check", "train", "rollout", "export", "view"];
        for (typed, meant) in [
            ("evall", Some("eval")),
            ("evla", Some("eval")),
            ("evaluate", Some("eval")),
            ("tain", Some("train")),
            ("rolout", Some("rollout")),
            ("chekc", Some("check")),
            ("exp", Some("export")),
            ("data", None),
            ("score", None),
            ("eval-packing", None),
            ("diff_alpha", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, names), meant, "{typed}");
        }
        assert_eq!(nearest("eatf", ["sft", "eaft", "deft", "dft"]), Some("eaft"), "two neighbours in each other's place");
        assert_eq!(nearest("rl", ["lr", "lora"]), None, "half of the name is wrong");
    }
}
