//! Which name was meant by one that nothing has.

/// The name that is nearest to what was typed, if it is near enough to have been meant: a slip in every four letters (a letter that is missing,
/// too many, wrong, or in its neighbour's place), or a word that goes on where the name ends, as `evaluate` does behind `eval`.
pub(crate) fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let slips = |name: &str| match name.len() >= 4 && (typed.starts_with(name) || typed.len() >= 3 && name.starts_with(typed)) {
        true => 1,
        false => strsim::osa_distance(typed, name),
    };
    let near = names.into_iter().map(|name| (slips(name), name)).filter(|(slips, name)| *slips * 4 <= name.len().max(4));
    near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

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
            ("", None),
        ] {
            assert_eq!(nearest(typed, names), meant, "{typed}");
        }
        assert_eq!(nearest("eatf", ["sft", "eaft", "deft", "dft"]), Some("eaft"), "two neighbours in each other's place");
    }
}
