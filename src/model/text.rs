//! Texts with limits. Lengths count Unicode scalar values, not bytes.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use super::serde_as_text;

/// Maximum length of a name, characters.
pub const NAME_MAX: usize = 64;
/// Maximum length of an item's name in the trade service, characters.
pub const ITEM_NAME_MAX: usize = 64;
/// Maximum length of a description, characters.
pub const DESCRIPTION_MAX: usize = 256;

/// The name of a peer or a user: 1–64 characters, at least one of them visible and none hiding. It is stored and shown
/// as it was given, and compared in Unicode's form C: two spellings of a name are one name, in every table. Cheap to
/// clone: names are keys of every table in memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(NormalizedText);

impl Name {
    /// Checks the rules for new names. The error is the rule that is broken.
    pub fn new(text: &str) -> Result<Name, String> {
        let name = Name::from_stored(text)?;
        check_visible(text)?;
        Ok(name)
    }

    /// A name that was accepted before, perhaps by a version that did not check its visibility: only length and control
    /// characters are checked.
    pub fn from_stored(text: &str) -> Result<Name, String> {
        check(text, 1, NAME_MAX).map(|()| Name(NormalizedText::new(text)))
    }

    /// The name with a number appended, shortened if it would be too long.
    pub fn numbered(&self, number: usize) -> Name {
        let number = number.to_string();
        let kept = self.as_str().chars().take(NAME_MAX - number.len());
        Name(NormalizedText::new(&kept.chain(number.chars()).collect::<String>()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The name as it is compared: in NFC.
    pub fn key(&self) -> &str {
        self.0.key()
    }
}

/// A text that is kept as it was given, but compared, ordered and hashed in [`nfc`]. Cheap to clone.
#[derive(Clone)]
pub struct NormalizedText(Spelling);

#[derive(Clone)]
enum Spelling {
    /// The given text is in NFC already, as nearly all texts are.
    Normal(Arc<str>),
    Other(Arc<Forms>),
}

struct Forms {
    given: Box<str>,
    key: Box<str>,
}

impl NormalizedText {
    pub fn new(given: &str) -> NormalizedText {
        NormalizedText(match nfc(given) {
            Cow::Borrowed(normal) => Spelling::Normal(normal.into()),
            Cow::Owned(key) => Spelling::Other(Arc::new(Forms { given: given.into(), key: key.into() })),
        })
    }

    pub fn as_str(&self) -> &str {
        match &self.0 {
            Spelling::Normal(text) => text,
            Spelling::Other(forms) => &forms.given,
        }
    }

    pub fn key(&self) -> &str {
        match &self.0 {
            Spelling::Normal(text) => text,
            Spelling::Other(forms) => &forms.key,
        }
    }
}

impl PartialEq for NormalizedText {
    fn eq(&self, other: &NormalizedText) -> bool {
        self.key() == other.key()
    }
}

impl Eq for NormalizedText {}

impl PartialOrd for NormalizedText {
    fn partial_cmp(&self, other: &NormalizedText) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NormalizedText {
    fn cmp(&self, other: &NormalizedText) -> Ordering {
        self.key().cmp(other.key())
    }
}

impl Hash for NormalizedText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

// Names of others, and those on disk: new users' names are checked further.
serde_as_text!(Name, Name::from_stored, |name, serializer| serializer.serialize_str(name.as_str()));

/// Checks that a text has from `min` to `max` characters.
pub fn check_length(text: &str, min: usize, max: usize) -> Result<(), String> {
    let length = text.chars().count();
    if length < min || length > max {
        return Err(format!("expected {min} to {max} characters, not {length}"));
    }
    Ok(())
}

/// Checks that a text has from `min` to `max` characters, none of them a control character.
pub fn check(text: &str, min: usize, max: usize) -> Result<(), String> {
    check_length(text, min, max)?;
    if text.chars().any(char::is_control) {
        return Err("expected no control characters".to_owned());
    }
    Ok(())
}

/// Checks a name that users give themselves or their files: something of it must be visible, and nothing in it may hide
/// or reverse the text around it. Otherwise two names could look alike and be taken for one.
pub fn check_visible(name: &str) -> Result<(), String> {
    // The fast path for nearly every name: names are checked with every request.
    if is_plain(name) && name.bytes().any(|byte| byte != b' ') {
        return Ok(());
    }
    let mut is_seen = false;
    for (_, kind) in char_kinds(name) {
        let expected = match kind {
            CharKind::Visible => {
                is_seen = true;
                continue;
            }
            CharKind::Blank | CharKind::Joined => continue,
            CharKind::Control => "no control characters",
            CharKind::Bidirectional => "no characters that change the direction of writing",
            CharKind::ZeroWidth => "no characters that cannot be seen",
            CharKind::Tag => "no tag characters but in the emoji of a flag",
        };
        return Err(format!("expected {expected}"));
    }
    if is_seen { Ok(()) } else { Err("expected something that can be seen".to_owned()) }
}

/// The form in which texts are compared: Unicode Normalization Form C. One letter can have several encodings (`é` is
/// one character on most keyboards and two on a Mac) that look the same.
pub fn nfc(text: &str) -> Cow<'_, str> {
    // Most texts are in this form already, which is quick to check.
    if is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
}

/// A text to search for within others: case-insensitive and in [`nfc`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextFilter(String);

impl TextFilter {
    pub fn new(text: &str) -> TextFilter {
        TextFilter(folded(text))
    }

    /// An empty filter matches every text.
    pub fn matches_everything(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, text: &str) -> bool {
        if self.matches_everything() {
            return true;
        }
        // Nearly all texts are ASCII, and they are many: nothing is allocated for them.
        if text.is_ascii() {
            let wanted = self.0.as_bytes();
            return text.as_bytes().windows(wanted.len()).any(|part| part.eq_ignore_ascii_case(wanted));
        }
        self.matches_folded(&folded(text))
    }

    /// The text must have been [`folded`] before.
    pub fn matches_folded(&self, folded: &str) -> bool {
        folded.contains(&self.0)
    }
}

/// The form in which texts are searched: lowercase NFC.
pub fn folded(text: &str) -> String {
    // The lowercase of a text in NFC need not be in NFC (İ).
    nfc(&nfc(text).to_lowercase()).into_owned()
}

/// The text as given, in NFC and in NFD: as texts may have been stored before they were compared in NFC.
pub fn spellings(text: &str) -> [String; 3] {
    [text.to_owned(), nfc(text).into_owned(), text.nfd().collect()]
}

/// Like [`spellings`], without duplicates, the given form first. Nearly all texts have just that one.
pub fn distinct_spellings(text: &str) -> Vec<String> {
    if text.is_ascii() {
        return vec![text.to_owned()];
    }
    let [given, composed, apart] = spellings(text);
    let mut distinct = vec![given];
    for other in [composed, apart] {
        if !distinct.contains(&other) {
            distinct.push(other);
        }
    }
    distinct
}

pub fn is_nfc(text: &str) -> bool {
    text.is_ascii() || unicode_normalization::is_nfc(text)
}

/// The system's text without its number: for users.
pub fn io_error_text(error: &std::io::Error) -> String {
    let said = error.to_string();
    match error.raw_os_error() {
        Some(number) => said.trim_end_matches(&format!(" (os error {number})")).to_owned(),
        None => said,
    }
}

/// The bytes without the UTF-8 byte order mark that some editors add.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// A foreign text, safe to print to a terminal: characters that could move the cursor, ring the bell, hide or reverse
/// text are replaced by U+FFFD. Everything that a name may contain stays.
pub fn escape_unsafe(text: &str) -> Cow<'_, str> {
    if is_plain(text) || char_kinds(text).all(|(_, kind)| kind.is_harmless()) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(char_kinds(text).map(|(c, kind)| if kind.is_harmless() { c } else { '\u{fffd}' }).collect())
}

/// JSON of one line, as safe to print as [`escape_unsafe`] makes a text, with the same meaning.
pub fn escape_unsafe_json(json: &str) -> Cow<'_, str> {
    if is_plain(json) || char_kinds(json).all(|(_, kind)| kind.is_harmless()) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for (c, kind) in char_kinds(json) {
        if kind.is_harmless() {
            safe.push(c);
        } else {
            // It is within a string, as no such character occurs anywhere else in JSON.
            for unit in c.encode_utf16(&mut [0; 2]) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Cow::Owned(safe)
}

/// Whether the text has only printable ASCII: quick to check, and nearly always true.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// How a character is displayed in its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CharKind {
    Visible,
    /// It takes space but is invisible.
    Blank,
    /// It belongs to the visible characters beside it: an accent, an emoji variation, a joiner or non-joiner between
    /// two letters, a flag's region.
    Joined,
    /// It controls a terminal or breaks a line.
    Control,
    /// It changes the direction of the text beside it.
    Bidirectional,
    /// It is invisible and takes no space.
    ZeroWidth,
    /// An invisible copy of ASCII, outside the flag emoji that it is meant for.
    Tag,
}

impl CharKind {
    fn is_harmless(self) -> bool {
        matches!(self, CharKind::Visible | CharKind::Blank | CharKind::Joined)
    }
}

fn char_kinds(text: &str) -> impl Iterator<Item = (char, CharKind)> + '_ {
    let mut rest = text.chars();
    // The character that a joiner, accent or selector would belong to.
    let mut before: Option<char> = None;
    let mut tags = 0;
    std::iter::from_fn(move || {
        let c = rest.next()?;
        let kind = match c {
            _ if tags > 0 => {
                tags -= 1;
                CharKind::Joined
            }
            _ if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => CharKind::Control,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                CharKind::Bidirectional
            }
            '\u{200c}' | '\u{200d}' if before.is_some() && rest.clone().next().is_some_and(is_visible) => {
                CharKind::Joined
            }
            _ if is_selector(c) && before.is_some_and(has_variants) => CharKind::Joined,
            '\u{e0000}'..='\u{e007f}' => CharKind::Tag,
            _ if is_ignorable(c) => CharKind::ZeroWidth,
            _ if is_blank(c) => CharKind::Blank,
            _ if !c.is_ascii() && is_combining_mark(c) => CharKind::Joined,
            _ => CharKind::Visible,
        };
        tags = tags.max(if c == FLAG { region_tags(rest.as_str()) } else { 0 });
        before = match kind {
            CharKind::Visible => Some(c),
            // A joiner joins one pair; an accent or a selector belongs to its letter. One selector is enough.
            CharKind::Joined if matches!(c, '\u{200c}' | '\u{200d}') => None,
            CharKind::Joined if before.is_some() => Some(c),
            _ => None,
        };
        Some((c, kind))
    })
}

/// The black flag, which the tags after it turn into a region's flag.
const FLAG: char = '\u{1f3f4}';

/// How many tags begin the text, if they are those of a region: three to six letters or digits, and the end tag.
fn region_tags(text: &str) -> usize {
    let region = |c: &char| matches!(c, '\u{e0030}'..='\u{e0039}' | '\u{e0061}'..='\u{e007a}');
    let length = text.chars().take_while(region).count();
    match text.chars().nth(length) {
        Some('\u{e007f}') if (3..=6).contains(&length) => length + 1,
        _ => 0,
    }
}

fn is_visible(c: char) -> bool {
    !c.is_control() && !is_ignorable(c) && !is_blank(c) && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// White space, and the letters that look like it.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}')
}

/// It chooses how the character before it looks.
fn is_selector(c: char) -> bool {
    matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' | '\u{180b}'..='\u{180d}' | '\u{180f}')
}

/// A selector may have a visible effect on it: signs, and the letters of scripts that have variants.
fn has_variants(c: char) -> bool {
    !is_ignorable(c)
        && (!c.is_alphabetic()
            || matches!(c, '\u{1000}'..='\u{109f}' | '\u{1800}'..='\u{18aa}' | '\u{2e80}'..='\u{9fff}'
                | '\u{a9e0}'..='\u{aa7f}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}'))
}

/// Unicode's Default_Ignorable_Code_Point without blanks: invisible characters.
fn is_ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests;
