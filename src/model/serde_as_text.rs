//! JSON of types that are written and read as one text.

/// Implements `Serialize` and `Deserialize`: how the text is parsed (an error is what was expected), and how it is written:
/// with `serialize_str`, or `collect_str`, which writes what `Display` shows without a text in between.
macro_rules! serde_as_text {
    ($Type:ident, $parse:expr, |$this:ident, $serializer:ident| $written:expr) => {
        impl serde::Serialize for $Type {
            fn serialize<S: serde::Serializer>(&self, $serializer: S) -> Result<S::Ok, S::Error> {
                let $this = self;
                $written
            }
        }

        impl<'de> serde::Deserialize<'de> for $Type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$Type, D::Error> {
                let text = <std::borrow::Cow<'_, str> as serde::Deserialize>::deserialize(deserializer)?;
                ($parse)(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use serde_as_text;
