//! Kubernetes quantities (`100m`, `1.5Gi`, `12e6`) as exact numbers, and back.
//!
//! Parsing and rounding follow apimachinery's `resource.Quantity`: nothing below a nano, every rounding goes away from
//! zero ("if you want some resources, you should get some"). Two differences, neither met in objects that an API server has
//! validated: amounts too big to hold stay at the biggest where apimachinery's wrap around, and all negative amounts are rounded
//! away from zero where its slow path rounds some towards it.

/// Nanos in one unit: the finest step that a quantity holds.
const NANO: i128 = 1_000_000_000;
/// Digits kept of the number as written. 10^36 still leaves `u128` room for two more digits; what is cut off still counts
/// for rounding.
const DIGITS_MAX: usize = 36;
/// Decimal exponents beyond this are far outside what fits, in both directions.
const EXPONENT_MAX: i64 = 100;

/// An exact amount, in nanos. Sums saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i128);

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No number, or something behind the suffix.
    #[error("{0:?} is not a quantity: write a number with an optional suffix, such as 100m, 2, 1.5Gi or 12e6")]
    Format(String),
    /// A suffix that Kubernetes does not have.
    #[error(
        "quantity {quantity:?} has the unknown suffix {suffix:?}: use n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei or an exponent such as e6"
    )]
    Suffix {
        /// The whole text.
        quantity: String,
        /// The part that is wrong.
        suffix: String,
    },
}

impl Amount {
    /// None of it.
    pub const ZERO: Self = Self(0);

    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
        if integer.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(QuantityError::Format(text.to_owned()));
        }
        let (exponent, shift) = scale(suffix).ok_or_else(|| refuse(text, suffix))?;
        let nanos = Digits::read(integer, fraction).scaled(exponent, shift);
        Ok(Self(if negative { -nanos } else { nanos }))
    }

    /// A whole number of units.
    pub fn of_units(units: i64) -> Self {
        Self(i128::from(units) * NANO)
    }

    /// Units, rounded away from zero: apimachinery's `Value()`.
    pub fn units(self) -> i64 {
        round(self.0, NANO)
    }

    /// Nanos: all that a quantity holds.
    pub fn nanos(self) -> i128 {
        self.0
    }

    /// Thousandths, rounded away from zero: apimachinery's `MilliValue()`.
    pub fn millis(self) -> i64 {
        round(self.0, NANO / 1_000)
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// A number as written: `mantissa * 10^exponent`, and whether non-zero digits were cut off behind it.
struct Digits {
    mantissa: u128,
    exponent: i64,
    more: bool,
}

impl Digits {
    fn read(integer: &str, fraction: &str) -> Self {
        let mut read = Self { mantissa: 0, exponent: 0, more: false };
        let integer = integer.trim_start_matches('0');
        let kept = &integer[..integer.len().min(DIGITS_MAX)];
        for digit in kept.bytes() {
            read.push(digit);
        }
        let cut = &integer[kept.len()..];
        read.exponent = i64::try_from(cut.len()).unwrap_or(i64::MAX);
        read.more = cut.bytes().any(|digit| digit != b'0');
        if read.exponent == 0 {
            let fraction = fraction.trim_end_matches('0');
            let leading = if kept.is_empty() { fraction.len() - fraction.trim_start_matches('0').len() } else { 0 };
            let end = fraction.len().min(leading + DIGITS_MAX - kept.len());
            for digit in fraction[..end].bytes() {
                read.push(digit);
            }
            read.exponent = -i64::try_from(end).unwrap_or(i64::MAX);
            read.more = end < fraction.len();
        } else {
            read.more |= fraction.bytes().any(|digit| digit != b'0');
        }
        read
    }

    fn push(&mut self, digit: u8) {
        self.mantissa = self.mantissa * 10 + u128::from(digit - b'0');
    }

    /// Drops the last digit of the mantissa.
    fn shorten(&mut self) {
        self.more |= !self.mantissa.is_multiple_of(10);
        self.mantissa /= 10;
        self.exponent += 1;
    }

    /// `self * 10^exponent * 2^shift` in nanos, rounded up, at most `i128::MAX`.
    fn scaled(mut self, exponent: i64, shift: u32) -> i128 {
        if self.mantissa == 0 && !self.more {
            return 0;
        }
        while self.mantissa > u128::MAX >> shift {
            self.shorten();
        }
        self.mantissa <<= shift;
        self.exponent = self.exponent.saturating_add(exponent).saturating_add(9);
        if self.exponent > EXPONENT_MAX {
            return i128::MAX;
        }
        for _ in 0..self.exponent {
            match self.mantissa.checked_mul(10) {
                Some(product) => self.mantissa = product,
                None => return i128::MAX,
            }
        }
        while self.exponent < 0 && self.mantissa > 0 {
            self.shorten();
        }
        i128::try_from(self.mantissa).map_or(i128::MAX, |nanos| nanos.saturating_add(i128::from(self.more)))
    }
}

/// Power of ten and power of two that a suffix stands for.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => (suffix.strip_prefix(['e', 'E'])?.parse().ok()?, 0),
    })
}

fn refuse(text: &str, suffix: &str) -> QuantityError {
    let letters = suffix.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let digits = letters.strip_prefix(['+', '-']).unwrap_or(letters);
    if digits.bytes().all(|digit| digit.is_ascii_digit()) {
        QuantityError::Suffix { quantity: text.to_owned(), suffix: suffix.to_owned() }
    } else {
        QuantityError::Format(text.to_owned())
    }
}

/// Divides, away from zero, into what an `i64` holds.
fn round(nanos: i128, step: i128) -> i64 {
    let up = nanos / step + (nanos % step).signum();
    i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
}

/// Thousandths as a canonical quantity: `1500m`, `2`, `3k`.
pub fn format_millis(millis: i64) -> String {
    decimal(millis, -1)
}

/// Units as a canonical decimal quantity: `110`, `2k`.
pub fn format_decimal(units: i64) -> String {
    decimal(units, 0)
}

/// Units as a canonical binary quantity, as kubelets write memory: `64Gi`, `1000Ki`, `1000`.
pub fn format_binary(units: i64) -> String {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if units.unsigned_abs() < 1_024 {
        return decimal(units, 0);
    }
    let mut rest = units;
    let mut step = 0;
    while rest % 1_024 == 0 && step + 1 < SUFFIXES.len() {
        rest /= 1_024;
        step += 1;
    }
    format!("{rest}{}", SUFFIXES[step])
}

/// `value * 1000^step` with the largest suffix that needs no fraction.
fn decimal(value: i64, step: i32) -> String {
    const SUFFIXES: [(i32, &str); 8] = [(-1, "m"), (0, ""), (1, "k"), (2, "M"), (3, "G"), (4, "T"), (5, "P"), (6, "E")];
    if value == 0 {
        return "0".to_owned();
    }
    let (mut rest, mut step) = (value, step);
    while rest % 1_000 == 0 && step < 6 {
        rest /= 1_000;
        step += 1;
    }
    let suffix = SUFFIXES.iter().find(|(at, _)| *at == step).map_or("", |(_, suffix)| suffix);
    format!("{rest}{suffix}")
}

#[cfg(test)]
#[path = "quantity_tests.rs"]
mod tests;
