//! `Debug` for types that hold secrets, or more than anybody wants to read.

/// Implements [`Debug`](std::fmt::Debug) for a type so that it shows these values and nothing else.
macro_rules! debug_fields {
    (
        $Type:ident $(<$parameter:ident $(: $bound:ident $(+ $lifetime:lifetime)?)?>)?,
        |$this:ident| $($field:ident: $value:expr),+
    ) => {
        impl$(<$parameter $(: $bound $(+ $lifetime)?)?>)? std::fmt::Debug for $Type$(<$parameter>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let $this = self;
                f.debug_struct(stringify!($Type))$(.field(stringify!($field), &$value))+.finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use debug_fields;
