//! Enums each of whose variants has one text: for rows, messages, JSON and people.

/// Declares an enum whose variants have a text each, with `ALL`, `as_text`, `from_text`, `Display` and `Serialize`.
macro_rules! named {
    ($(#[$attribute:meta])* $visibility:vis enum $Name:ident {
        $($(#[$variant_attribute:meta])* $Variant:ident = $text:literal,)+
    }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $Name {
            $($(#[$variant_attribute])* $Variant,)+
        }

        #[allow(dead_code, reason = "not every enum is read back")]
        impl $Name {
            /// All of them, in the order of their discriminants.
            pub const ALL: &[$Name] = &[$($Name::$Variant),+];

            pub fn as_text(self) -> &'static str {
                match self {
                    $($Name::$Variant => $text),+
                }
            }

            pub fn from_text(text: &str) -> Option<$Name> {
                match text {
                    $($text => Some($Name::$Variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_text())
            }
        }

        impl serde::Serialize for $Name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_text())
            }
        }
    };
}

pub(crate) use named;
