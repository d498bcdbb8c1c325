//! Rules about spellings of one word, and about its endings.

/// Stems that are written with `our` in Britain and with `or` in America. A rule for these letters alone would turn mourning into morning.
const OUR: &str = "arbour ardour armour behaviour candour clamour colour demeanour endeavour favour fervour flavour glamour honour humour \
                   labour neighbour odour parlour rancour rigour rumour saviour savour splendour succour tumour valour vapour vigour";

/// Stems whose `l` is doubled before a vowel in Britain and not in America. A rule for all stems would turn filled into filed, and holly into holy.
const DOUBLED: &str = "bevel cancel channel chisel counsel dial duel enamel equal fuel funnel grovel initial jewel label level libel marvel \
                       medal model panel pedal quarrel revel rival shovel signal snorkel spiral swivel total travel tunnel unravel";

/// Irregular spellings, and endings that no other words share.
const SPELT: &[(&str, &str)] = &[
    ("yse", "yze"),
    ("ise", "ize"),
    ("isi", "izi"),
    ("isa", "iza"),
    ("ogue", "og"),
    ("jewelery", "jewelry"),
    ("fulfill", "fulfil"),
    ("enroll", "enrol"),
    ("skillful", "skilful"),
    ("willful", "wilful"),
    ("installment", "instalment"),
    ("woollen", "woolen"),
];

/// Are the two words the British and the American spelling of the same word?
pub(super) fn is_other_spelling(word: &str, other: &str) -> bool {
    let plain = |word: &str| {
        let mut word = word.to_lowercase();
        for british in OUR.split_whitespace() {
            word = word.replace(british, &british.replace("our", "or"));
        }
        for stem in DOUBLED.split_whitespace() {
            for vowel in ["e", "i", "o"] {
                word = word.replace(&format!("{stem}l{vowel}"), &format!("{stem}{vowel}"));
            }
        }
        for (one, another) in SPELT {
            word = word.replace(one, another);
        }
        let (stem, plural) = word.strip_suffix('s').map_or((word.as_str(), ""), |stem| (stem, "s"));
        // Centre, fibre, meagre, ochre; but tire is not tier.
        match stem.strip_suffix("re").filter(|stem| stem.ends_with(['b', 'g', 'h', 't'])) {
            Some(stem) => format!("{stem}er{plural}"),
            None => word,
        }
    };
    word.chars().count() > 4 && word.to_lowercase() != other.to_lowercase() && plain(word) == plain(other)
}

/// Do two words differ only in the ending of a plural or of a tense?
pub(super) fn is_other_ending(word: &str, other: &str) -> bool {
    const ENDINGS: [&str; 8] = ["", "s", "es", "ed", "d", "ing", "y", "ies"];
    let (word, other) = (word.to_lowercase(), other.to_lowercase());
    let same: usize =
        word.chars().zip(other.chars()).take_while(|(a, b)| a == b && a.is_alphabetic()).map(|(a, _)| a.len_utf8()).sum();
    // `bed` and `being` share two letters, and differ in such endings, too.
    same >= 3 && word != other && ENDINGS.contains(&&word[same..]) && ENDINGS.contains(&&other[same..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_words_are_no_other_spelling() {
        for (british, american) in [
            ("colour", "color"),
            ("Neighbouring", "neighboring"),
            ("discoloured", "discolored"),
            ("savoury", "savory"),
            ("travelled", "traveled"),
            ("modelling", "modeling"),
            ("marvellous", "marvelous"),
            ("jewellery", "jewelry"),
            ("fulfil", "fulfill"),
            ("enrolment", "enrollment"),
            ("centres", "centers"),
            ("fibre", "fiber"),
            ("analyse", "analyze"),
            ("realising", "realizing"),
            ("organisation", "organization"),
            ("dialogues", "dialogs"),
        ] {
            assert!(is_other_spelling(british, american) && is_other_spelling(american, british), "{british}, {american}");
        }
        for (word, other) in [
            ("mourning", "morning"),
            ("pouring", "poring"),
            ("holly", "holy"),
            ("bellow", "below"),
            ("belly", "bely"),
            ("filled", "filed"),
            ("tilled", "tiled"),
            ("polling", "poling"),
            ("collar", "colar"),
            ("totally", "totaly"),
            ("tires", "tiers"),
            ("fours", "fors"),
        ] {
            assert!(!is_other_spelling(word, other) && !is_other_spelling(other, word), "{word}, {other}");
        }
    }
}
