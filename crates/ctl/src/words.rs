//! Enums whose variants are words: labels of counters, fields of log lines, values of settings.
//!
//! Invariant: a word is written once, beside its variant. Must not: know the meaning of a word.

/// An enum whose variants are words.
pub trait Word: Copy + PartialEq + Send + Sync + 'static {
    /// Every variant, in the order of declaration.
    const VARIANTS: &'static [Self];

    /// Returns the variant's word.
    fn word(self) -> &'static str;

    /// Returns the variant with this word.
    fn find(word: &str) -> Option<Self> {
        let mut variants = Self::VARIANTS.iter().copied();
        variants.find(|variant| variant.word() == word)
    }
}

/// Declares an enum with a word for each variant.
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// Returns every variant, in the order of declaration.
            pub fn all() -> impl Iterator<Item = Self> {
                Self::ALL.into_iter()
            }

            /// Returns the variant's index in that order.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }

            /// Returns the variant's word.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl $crate::words::Word for $name {
            const VARIANTS: &'static [Self] = &Self::ALL;

            fn word(self) -> &'static str {
                self.name()
            }
        }
    };
}
