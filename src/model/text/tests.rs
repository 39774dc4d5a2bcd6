use proptest::prelude::*;

use super::*;

/// Texts of all that the rules tell apart, one beside the other.
fn tricky() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::char::any(),
        prop::sample::select(
            "aé \u{301}\u{200b}\u{200c}\u{200d}\u{202e}\u{61c}\u{feff}\u{ad}\u{fe0f}\u{e0041}\u{e0067}\u{e007f}\u{1f3f4}\u{3164}\u{1b}\n❤👩می葛\u{e0100}"
                .chars()
                .collect::<Vec<_>>()
        ),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.into_iter().collect())
}

#[test]
fn what_the_system_says_is_told_without_its_number() {
    use std::io::Error;
    let refused = Error::from_raw_os_error(2);
    assert!(refused.to_string().ends_with(" (os error 2)"), "else there is nothing to leave out");
    assert_eq!(format!("{} (os error 2)", io_error_text(&refused)), refused.to_string());
    assert_eq!(io_error_text(&Error::other("ours (os error 2)")), "ours (os error 2)");
}

#[test]
fn each_spelling_is_named_once_as_it_is_given_first() {
    assert_eq!(distinct_spellings("plain"), ["plain"]);
    assert_eq!(distinct_spellings("日本"), ["日本"]);
    let (composed, apart) = ("caf\u{e9}", "cafe\u{301}");
    assert_eq!(distinct_spellings(composed), [composed, apart]);
    assert_eq!(distinct_spellings(apart), [apart, composed]);
    // Neither the one nor the other.
    let mixed = "\u{e9}e\u{301}";
    assert_eq!(distinct_spellings(mixed), [mixed, "\u{e9}\u{e9}", "e\u{301}e\u{301}"]);
}

proptest! {
    #[test]
    fn what_is_shown_holds_nothing_that_drives_hides_or_turns(text in tricky()) {
        let shown = escape_unsafe(&text);
        prop_assert_eq!(shown.chars().count(), text.chars().count());
        prop_assert!(shown.chars().all(|c| !c.is_control()));
        for banned in ["\u{200b}", "\u{202e}", "\u{61c}", "\u{feff}", "\u{ad}", "\u{e0041}", "\u{2028}", "\u{2066}"] {
            prop_assert!(!shown.contains(banned), "{:?}", shown);
        }
        // What may be a name is shown as it was given; nothing else that can be seen changes.
        if check_visible(&text).is_ok() {
            prop_assert_eq!(&*shown, &*text);
        }
        prop_assert_eq!(&*escape_unsafe(&shown), &*shown);
    }

    #[test]
    fn json_means_the_same_when_it_is_safe(text in tricky()) {
        let json = serde_json::to_string(&text).unwrap();
        let shown = escape_unsafe_json(&json);
        prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        prop_assert_eq!(&*escape_unsafe(&shown), &*shown);
    }

    #[test]
    fn one_text_has_one_key(text in tricky()) {
        let key = nfc(&text).into_owned();
        let apart: String = text.nfd().collect();
        prop_assert_eq!(&*nfc(&apart), &*key);
        prop_assert_eq!(&*nfc(&key), &*key);
        prop_assert!(is_nfc(&key));
    }
}

#[test]
fn a_name_can_be_seen_and_hides_nothing() {
    for good in [
        "ann",
        "Mary Ann",
        "jürgen",
        "ju\u{308}rgen",
        "李小龍",
        "葛\u{e0100}城",
        "می\u{200c}خواهم",
        "क\u{94d}\u{200d}ष",
        "👩\u{200d}👩\u{200d}👧",
        "👩\u{200d}❤\u{fe0f}\u{200d}👨",
        "1\u{fe0f}\u{20e3}",
        "🏴\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f} fan",
        "Ω",
        "$",
        "\u{fffd}",
    ] {
        assert_eq!(check_visible(good), Ok(()), "{good:?}");
        assert_eq!(escape_unsafe(good), good);
    }
    for bad in [
        "",
        " ",
        "\u{3000}\u{a0}",
        "\u{301}",
        "\u{3164}",
        "\u{2800}",
        "\u{ffa0} ",
        "ann\u{200b}",
        "\u{feff}ann",
        "an\u{ad}n",
        "an\u{34f}n",
        "an\u{2060}n",
        "ann\u{202e}",
        "\u{200f}ann",
        "\u{61c}ann",
        "a\u{2066}b\u{2069}",
        "ann\u{200d}",
        "\u{200c}ann",
        "a \u{200d}b",
        "a\u{200d} b",
        "a\u{200d}\u{200d}b",
        "a\u{200d}\u{301}\u{200d}",
        "ann\u{fe0f}",
        "\u{fe0f}",
        "❤\u{fe0f}\u{fe0f}",
        "ann\u{e0061}",
        "😀\u{e0061}\u{e007f}",
        "🏴\u{e0067}\u{e0062}",
        "🏴\u{e007f}",
        "🏴\u{e0041}\u{e0042}\u{e0043}\u{e007f}",
        "\u{e0001}ann",
        "a\u{2028}b",
        "a\u{7}b",
    ] {
        assert!(check_visible(bad).is_err(), "{bad:?} was taken");
    }
    assert_eq!(Name::new("ann\u{200b}").unwrap_err(), "expected no characters that cannot be seen");
    assert_eq!(Name::from_stored("ann\u{200b}").unwrap().as_str(), "ann\u{200b}", "who has it keeps it");
}

#[test]
fn what_drives_a_terminal_is_not_shown() {
    assert_eq!(escape_unsafe("a\x1b[2Jb\r\u{9b}\u{202e}ü"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}ü");
    assert_eq!(escape_unsafe("a\u{e0041}b\u{200b}"), "a\u{fffd}b\u{fffd}");
    assert_eq!(escape_unsafe_json("\"a\u{9b}\u{e0041}\u{200d}\""), "\"a\\u009b\\udb40\\udc41\\u200d\"");
    assert!(matches!(escape_unsafe("plain"), Cow::Borrowed("plain")));
}

#[test]
fn a_text_is_found_in_any_case_and_spelling() {
    let is_in = |sought: &str, text: &str| TextFilter::new(sought).matches(text);
    for (sought, text) in
        [("", ""), ("", "x"), ("AN", "joanna"), ("zoë", "ZOE\u{308}!"), ("ZOE\u{308}", "a zoë"), ("ß", "Straße")]
    {
        assert!(is_in(sought, text), "{sought} in {text}");
    }
    for (sought, text) in [("x", ""), ("anna", "ann"), ("zoe", "Zoë"), ("é", "e"), ("a b", "ab")] {
        assert!(!is_in(sought, text), "{sought} in {text}");
    }
}

#[test]
fn a_name_is_one_however_it_is_spelled() {
    let (composed, apart) = (Name::new("Zoë").unwrap(), Name::new("Zoe\u{308}").unwrap());
    assert_eq!(composed, apart);
    assert_eq!((apart.as_str(), apart.key()), ("Zoe\u{308}", "Zoë"));
    assert_eq!(serde_json::to_string(&apart).unwrap(), "\"Zoe\u{308}\"");
    assert!(std::collections::HashSet::from([composed.clone()]).contains(&apart));
    assert!(std::collections::BTreeSet::from([apart.clone()]).contains(&composed));
    assert_ne!(composed, Name::new("Zoe").unwrap());
    assert_eq!(size_of::<Name>(), size_of::<Arc<str>>(), "there may be millions of them");
}

#[test]
fn both_forms_of_a_text_are_one() {
    assert_eq!(nfc("Zoe\u{308}"), "Zoë");
    assert!(matches!(nfc("Zoë"), Cow::Borrowed("Zoë")));
    assert_eq!(nfc("\u{212b}"), "Å", "the sign of Ångström is the letter");
    assert_eq!(nfc("ﬁ"), "ﬁ", "what looks otherwise stays");
}

#[test]
fn a_byte_order_mark_is_not_content() {
    assert_eq!(without_bom(b"\xef\xbb\xbf{}"), b"{}");
    assert_eq!(without_bom(b"{\xef\xbb\xbf}"), b"{\xef\xbb\xbf}");
    assert_eq!(without_bom(b"\xef\xbb"), b"\xef\xbb");
}

#[test]
fn names_count_characters_not_bytes() {
    assert!(Name::new(&"ü".repeat(64)).is_ok());
    assert!(Name::new(&"ü".repeat(65)).is_err());
    assert_eq!(Name::new(&"ü".repeat(64)).unwrap().numbered(12).as_str(), format!("{}12", "ü".repeat(62)));
    assert_eq!(Name::new("al").unwrap().numbered(2).as_str(), "al2");
    assert!(Name::new("").is_err());
    assert!(Name::new("a\u{7}b").is_err());
    assert!(serde_json::from_str::<Name>("\"a\\nb\"").is_err());
    assert_eq!(serde_json::from_str::<Name>("\"a\\u00fcb\"").unwrap().as_str(), "aüb");
}
