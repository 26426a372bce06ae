//! The Porter stemmer with the extensions of nltk (its default mode), as `rouge_score` uses it.
//!
//! Porter 1980, with nltk's changes: a table of irregular forms; words of one or two letters are
//! left alone; `ies`/`ied` in four-letter words keep the `e`; `y` becomes `i` only after a
//! consonant that is not the whole stem; `alli` recurs; two more suffixes in step 2; a stem of
//! vowel and consonant ends "cvc".

/// The stem of a lower-case ASCII word.
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word) {
        return (*stem).to_string();
    }
    if word.len() <= 2 {
        return word.to_string();
    }
    let word = plural(word);
    let word = past_and_gerund(&word);
    let word = final_y(&word);
    let word = double_suffix(&word);
    let word = single_suffix(&word);
    let word = residual_suffix(&word);
    final_e_and_double_l(&word)
}

const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Per letter, whether it is a consonant: not a, e, i, o, u, and not a y after a consonant.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for b in word.bytes() {
        let consonant = match b {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => flags.last().is_none_or(|before| !before),
            _ => true,
        };
        flags.push(consonant);
    }
    flags
}

/// Porter's measure m: how often a consonant follows a vowel.
fn measure(stem: &str) -> usize {
    consonants(stem).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).contains(&false)
}

fn ends_double_consonant(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 2 && bytes[bytes.len() - 1] == bytes[bytes.len() - 2] && consonants(word).last() == Some(&true)
}

fn ends_consonant_vowel_consonant(word: &str) -> bool {
    match consonants(word).as_slice() {
        [false, true] => true,
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}

/// The first rule whose suffix the word has decides, whether or not its condition holds.
fn apply(word: &str, rules: &[(&str, &str)], condition: impl Fn(&str, &str) -> bool) -> String {
    for (suffix, replacement) in rules {
        if let Some(stem) = word.strip_suffix(suffix) {
            return if condition(stem, suffix) { format!("{stem}{replacement}") } else { word.to_string() };
        }
    }
    word.to_string()
}

fn plural(word: &str) -> String {
    if word.len() == 4
        && let Some(stem) = word.strip_suffix("ies")
    {
        return format!("{stem}ie");
    }
    apply(word, &[("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")], |_, _| true)
}

fn past_and_gerund(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if word.len() == 4 { "ie" } else { "i" });
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if measure(stem) > 0 { format!("{stem}ee") } else { word.to_string() };
    }
    let Some(stem) = ["ed", "ing"].iter().find_map(|suffix| word.strip_suffix(suffix).filter(|stem| has_vowel(stem)))
    else {
        return word.to_string();
    };
    for (ending, completed) in [("at", "ate"), ("bl", "ble"), ("iz", "ize")] {
        if let Some(head) = stem.strip_suffix(ending) {
            return format!("{head}{completed}");
        }
    }
    if ends_double_consonant(stem) {
        return if stem.ends_with(['l', 's', 'z']) { stem.to_string() } else { stem[..stem.len() - 1].to_string() };
    }
    if measure(stem) == 1 && ends_consonant_vowel_consonant(stem) {
        return format!("{stem}e");
    }
    stem.to_string()
}

fn final_y(word: &str) -> String {
    apply(word, &[("y", "i")], |stem, _| stem.len() > 1 && consonants(stem).last() == Some(&true))
}

fn double_suffix(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| measure(stem) > 0) {
        return double_suffix(&format!("{stem}al"));
    }
    const RULES: [(&str, &str); 22] = [
        ("ational", "ate"),
        ("tional", "tion"),
        ("enci", "ence"),
        ("anci", "ance"),
        ("izer", "ize"),
        ("bli", "ble"),
        ("alli", "al"),
        ("entli", "ent"),
        ("eli", "e"),
        ("ousli", "ous"),
        ("ization", "ize"),
        ("ation", "ate"),
        ("ator", "ate"),
        ("alism", "al"),
        ("iveness", "ive"),
        ("fulness", "ful"),
        ("ousness", "ous"),
        ("aliti", "al"),
        ("iviti", "ive"),
        ("biliti", "ble"),
        ("fulli", "ful"),
        ("logi", "log"),
    ];
    // For -logi the measure is that of the word without "ogi".
    apply(word, &RULES, |stem, suffix| match suffix {
        "logi" => measure(&word[..word.len() - 3]) > 0,
        _ => measure(stem) > 0,
    })
}

fn single_suffix(word: &str) -> String {
    const RULES: [(&str, &str); 7] =
        [("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];
    apply(word, &RULES, |stem, _| measure(stem) > 0)
}

fn residual_suffix(word: &str) -> String {
    const RULES: [(&str, &str); 19] = [
        ("al", ""),
        ("ance", ""),
        ("ence", ""),
        ("er", ""),
        ("ic", ""),
        ("able", ""),
        ("ible", ""),
        ("ant", ""),
        ("ement", ""),
        ("ment", ""),
        ("ent", ""),
        ("ion", ""),
        ("ou", ""),
        ("ism", ""),
        ("ate", ""),
        ("iti", ""),
        ("ous", ""),
        ("ive", ""),
        ("ize", ""),
    ];
    apply(word, &RULES, |stem, suffix| measure(stem) > 1 && (suffix != "ion" || stem.ends_with(['s', 't'])))
}

fn final_e_and_double_l(word: &str) -> String {
    let mut word = word;
    if let Some(stem) = word.strip_suffix('e') {
        let m = measure(stem);
        if m > 1 || (m == 1 && !ends_consonant_vowel_consonant(stem)) {
            word = stem;
        }
    }
    match word.strip_suffix('l') {
        Some(stem) if stem.ends_with('l') && measure(stem) > 1 => stem.to_string(),
        _ => word.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems_are_those_of_nltk() {
        // Values of nltk 3.10.4, PorterStemmer().
        for (word, expected) in [
            ("patients", "patient"),
            ("treated", "treat"),
            ("antibiotics", "antibiot"),
            ("recovered", "recov"),
            ("happy", "happi"),
            ("enjoy", "enjoy"),
            ("dying", "die"),
            ("flies", "fli"),
            ("ties", "tie"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("conditional", "condit"),
            ("radically", "radic"),
            ("biology", "biolog"),
            ("controll", "control"),
            ("adoption", "adopt"),
            ("generalizations", "gener"),
        ] {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
