//! The sizes of messages: fixed, uniform between two bounds, or one of the named mixes.
//!
//! Pure: the random numbers come from the caller's generator.

use std::fmt;
use std::str::FromStr;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// Maximum size of a message in bytes.
pub const SIZE_MAX: u32 = 64 << 20;

/// The distribution of message sizes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sizes {
    /// One size.
    Fixed(u32),
    /// Every size from the first to the last, with equal probability.
    Uniform(u32, u32),
    /// A named mix.
    Mix(Mix),
}

/// A named set of sizes with their shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mix {
    /// Lines and keystrokes.
    Chat,
    /// Many small ones, some of page size, few large ones.
    Mixed,
}

impl Mix {
    const ALL: [Self; 2] = [Self::Chat, Self::Mixed];

    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Mixed => "mixed",
        }
    }

    /// Returns the sizes in bytes, with their shares in percent.
    const fn table(self) -> &'static [(u32, u32)] {
        match self {
            Self::Chat => &[(1, 20), (16, 30), (64, 35), (256, 15)],
            Self::Mixed => &[(64, 60), (1024, 30), (16 * 1024, 9), (256 * 1024, 1)],
        }
    }
}

impl Sizes {
    /// Returns the size of the next message.
    pub fn draw(self, rng: &mut Rng) -> u32 {
        match self {
            Self::Fixed(size) => size,
            Self::Uniform(least, most) => rng.u32(least..=most),
            Self::Mix(mix) => {
                let mut ticket = rng.u32(0..100);
                for &(size, share) in mix.table() {
                    if ticket < share {
                        return size;
                    }
                    ticket -= share;
                }
                1
            }
        }
    }

    /// Returns the maximum size.
    #[must_use]
    pub fn most(self) -> u32 {
        match self {
            Self::Fixed(size) | Self::Uniform(_, size) => size,
            Self::Mix(mix) => mix.table().iter().map(|(size, _)| *size).max().unwrap_or(1),
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(mix) = Mix::ALL.into_iter().find(|mix| mix.name() == text) {
            return Ok(Self::Mix(mix));
        }
        match text.split_once("..") {
            None => Ok(Self::Fixed(bytes(text)?)),
            Some((least, most)) => match (bytes(least)?, bytes(most)?) {
                (least, most) if least <= most => Ok(Self::Uniform(least, most)),
                _ => Err("the first bound is above the second".to_owned()),
            },
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(out, "{size}"),
            Self::Uniform(least, most) => write!(out, "{least}..{most}"),
            Self::Mix(mix) => out.write_str(mix.name()),
        }
    }
}

/// Parses a number of bytes, in units of 1024 with `k` or `M`.
fn bytes(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!(
            "a size is 1 to {SIZE_MAX} bytes (64, 16k, 1M), two of them (64..1k), {} or {}",
            Mix::Chat.name(),
            Mix::Mixed.name()
        )
    };
    let (digits, unit) = match text.trim_end_matches("iB").trim_end_matches('B') {
        number if number.ends_with(['k', 'K']) => (&number[..number.len() - 1], 1 << 10),
        number if number.ends_with('M') => (&number[..number.len() - 1], 1 << 20),
        number => (number, 1),
    };
    let number: u32 = digits.parse().map_err(|_| wrong())?;
    match number.checked_mul(unit) {
        Some(size) if (1..=SIZE_MAX).contains(&size) => Ok(size),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, sizes) in [
            ("64", Sizes::Fixed(64)),
            ("16k", Sizes::Fixed(16 * 1024)),
            ("1MiB", Sizes::Fixed(1 << 20)),
            ("8B..1KiB", Sizes::Uniform(8, 1024)),
            ("mixed", Sizes::Mix(Mix::Mixed)),
        ] {
            assert_eq!(text.parse(), Ok(sizes), "{text}");
            assert_eq!(sizes.to_string().parse(), Ok(sizes), "{text}");
        }
        for text in ["", "0", "-1", "65M", "9..8", "..", "1..", "x", "5000000k"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn drawn_sizes_stay_within_bounds() {
        let mut rng = Rng::with_seed(1);
        for mix in Mix::ALL {
            let shares: u32 = mix.table().iter().map(|(_, share)| share).sum();
            assert_eq!(shares, 100);
            let drawn: Vec<u32> = (0..5000).map(|_| Sizes::Mix(mix).draw(&mut rng)).collect();
            for (size, _) in mix.table() {
                assert!(drawn.contains(size), "{mix:?}: {size}");
            }
        }
        let range = Sizes::Uniform(3, 5);
        assert!((0..100).all(|_| (3..=5).contains(&range.draw(&mut rng))));
        assert_eq!(
            (range.most(), Sizes::Mix(Mix::Mixed).most()),
            (5, 256 * 1024)
        );
    }
}
