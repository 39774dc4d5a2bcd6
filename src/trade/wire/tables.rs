//! The forms in which `messages.rs` and `settlement.rs` write their tables of messages.

/// What a server sends. A row is the name on the wire, the variant and its fields, each named as on the wire; all of
/// them have the field `by`.
macro_rules! server_messages {
    (
        $(#[$about:meta])*
        pub enum $Message:ident by $key:ident: $Key:ty {
            $(
                $(#[$about_row:meta])*
                $name:literal $variant:ident { $($(#[$about_field:meta])* $field:ident: $Type:ty),* $(,)? }
            ),* $(,)?
        }
    ) => {
        $(#[$about])*
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(tag = "type")]
        pub enum $Message {
            $($(#[$about_row])* #[serde(rename = $name)] $variant { $($(#[$about_field])* $field: $Type),* }),*
        }

        impl $Message {
            pub(super) const TYPES: &[&str] = &[$($name),*];

            /// The field that every message has.
            pub fn $key(&self) -> $Key {
                match self { $($Message::$variant { $key, .. } => <$Key>::from(*$key)),* }
            }
        }
    };
}

/// What a peer requests. A row is the name on the wire, the variant, its fields and the responses other than ERROR. The
/// method of [`RawMessage`](super::messages::RawMessage) that bears a field's name reads it. Requests about a deal also
/// tell which sides send them; all of them have an `item_name`.
macro_rules! requests {
    (
        $(
            $(#[$about:meta])*
            $name:literal $variant:ident $({ $($(#[$about_field:meta])* $field:ident: $Type:ty),* })?
                => $($response:ident)|+;
        )*
        about a deal:
        $(
            $(#[$deal_about:meta])*
            $deal_name:literal
                $deal_variant:ident $({ $($(#[$deal_about_field:meta])* $deal_field:ident: $DealType:ty),* })?
                from $($sender:ident)|+ => $deal_response:ident;
        )*
    ) => {
        /// A request.
        #[derive(Debug, Clone, Serialize)]
        #[serde(untagged)]
        pub enum RequestBody {
            $($(#[$about])* $variant $({ $($(#[$about_field])* $field: $Type),* })?,)*
            /// About a deal.
            Deal {
                /// The item as the buyer named it.
                item_name: Arc<str>,
                #[serde(flatten)]
                request: DealRequest,
            },
        }

        /// A request about a deal.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum DealRequest {
            $($(#[$deal_about])* $deal_variant $({ $($(#[$deal_about_field])* $deal_field: $DealType),* })?,)*
        }

        /// Rows name it by its variant, so a variant is never renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum RequestKind {
            $($(#[$deal_about])* $deal_variant,)*
        }

        impl RequestBody {
            /// Except for those of [`DealRequest`].
            pub(super) const TYPES: &[&str] = &[$($name),*];

            /// The name on the wire.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(RequestBody::$variant { .. } => $name,)*
                    RequestBody::Deal { request, .. } => match request {
                        $(DealRequest::$deal_variant { .. } => $deal_name,)*
                    },
                }
            }

            /// `None` if no request has this name.
            pub(super) fn read(name: &str, raw: &RawMessage) -> Result<Option<RequestBody>, String> {
                Ok(Some(match name {
                    $($name => RequestBody::$variant $({ $($field: raw.$field()?),* })?,)*
                    $($deal_name => RequestBody::Deal {
                        item_name: raw.item_name()?,
                        request: DealRequest::$deal_variant $({ $($deal_field: raw.$deal_field()?),* })?,
                    },)*
                    _ => return Ok(None),
                }))
            }

            /// Several requests of a deal share a number, and the response to an earlier one may arrive late.
            pub fn is_answered_by(&self, response: &Response) -> bool {
                matches!(response, Response::Error { .. })
                    || match self {
                        $(RequestBody::$variant { .. } => matches!(response, $(Response::$response { .. })|+),)*
                        RequestBody::Deal { request, .. } => match request {
                            $(DealRequest::$deal_variant { .. } => matches!(response, Response::$deal_response { .. }),)*
                        },
                    }
            }
        }

        impl DealRequest {
            pub(super) const TYPES: &[&str] = &[$($deal_name),*];

            /// The kind of this request.
            pub fn kind(&self) -> RequestKind {
                match self { $(DealRequest::$deal_variant { .. } => RequestKind::$deal_variant,)* }
            }

            /// The response if the request is accepted.
            pub fn accepted(&self, rq: u64) -> Response {
                match self { $(DealRequest::$deal_variant { .. } => Response::$deal_response { rq },)* }
            }

            pub(super) fn is_sent_by(&self, side: Side) -> bool {
                match self { $(DealRequest::$deal_variant { .. } => matches!(side, $(Side::$sender)|+),)* }
            }
        }
    };
}

/// What a message of a peer may have besides `type`. Unknown fields are skipped.
macro_rules! raw_message {
    ($($(#[$about:meta])* $field:ident),*; elsewhere: $($other:literal),*) => {
        /// The fields of a peer's message as they arrive.
        #[derive(Deserialize)]
        pub(super) struct RawMessage {
            pub(super) r#type: Option<Value>,
            $($(#[$about])* pub(super) $field: Option<Value>,)*
        }

        /// The names of these fields and of those of settlements, for error texts.
        pub(super) const FIELDS: &[&str] = &["type", $(stringify!($field),)* $($other),*];
    };
}
