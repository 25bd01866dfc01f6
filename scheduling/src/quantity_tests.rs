//! Readings of apimachinery 0.36.3 (`ParseQuantity`, `MilliValue`, `Value`), and what is ours beyond them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

/// Text, `MilliValue()`, `Value()`, as apimachinery itself gave them.
const READINGS: &[(&str, i64, i64)] = &[
    ("0", 0, 0),
    ("1", 1_000, 1),
    ("100m", 100, 1),
    ("1.5", 1_500, 2),
    ("0.1m", 1, 1),
    ("1n", 1, 1),
    ("1u", 1, 1),
    ("999999999n", 1_000, 1),
    ("1.0000000001", 1_001, 2),
    ("0.0001", 1, 1),
    ("2k", 2_000_000, 2_000),
    ("1M", 1_000_000_000, 1_000_000),
    ("3G", 3_000_000_000_000, 3_000_000_000),
    ("1T", 1_000_000_000_000_000, 1_000_000_000_000),
    ("1P", 1_000_000_000_000_000_000, 1_000_000_000_000_000),
    ("1e3", 1_000_000, 1_000),
    ("1E3", 1_000_000, 1_000),
    ("12e6", 12_000_000_000, 12_000_000),
    ("1e-3", 1, 1),
    ("1e-12", 1, 1),
    ("5e-10", 1, 1),
    ("1Ki", 1_024_000, 1_024),
    ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
    ("0.1Ki", 102_400, 103),
    ("0.5Ki", 512_000, 512),
    ("1000Ki", 1_024_000_000, 1_024_000),
    ("1024Ki", 1_048_576_000, 1_048_576),
    ("1048576Ki", 1_073_741_824_000, 1_073_741_824),
    ("1500Mi", 1_572_864_000_000, 1_572_864_000),
    ("1023", 1_023_000, 1_023),
    ("1024", 1_024_000, 1_024),
    ("-1", -1_000, -1),
    ("-1500m", -1_500, -2),
    ("-1.5Gi", -1_610_612_736_000, -1_610_612_736),
    ("-0.5", -500, -1),
    ("-1n", -1, -1),
    ("+5", 5_000, 5),
    ("5.", 5_000, 5),
    (".5", 500, 1),
    (".5Gi", 536_870_912_000, 536_870_912),
    ("0005", 5_000, 5),
    ("00", 0, 0),
    ("0.000000000000000000000000000001", 1, 1),
    ("3.14159Ti", 3_454_214_734_704_804, 3_454_214_734_705),
    ("128974848", 128_974_848_000, 128_974_848),
    ("129e6", 129_000_000_000, 129_000_000),
    ("129M", 129_000_000_000, 129_000_000),
    ("123Mi", 128_974_848_000, 128_974_848),
    ("1e+3", 1_000_000, 1_000),
];

/// The same where the number does not fit an `i64`: apimachinery's wraps around, ours stays at the biggest.
const SATURATED: &[(&str, i64, i64)] = &[
    ("1E", i64::MAX, 1_000_000_000_000_000_000),
    ("9E", i64::MAX, 9_000_000_000_000_000_000),
    ("10E", i64::MAX, i64::MAX),
    ("92233720368547758079", i64::MAX, i64::MAX),
    ("1e18", i64::MAX, 1_000_000_000_000_000_000),
    ("1e19", i64::MAX, i64::MAX),
    ("1Ei", i64::MAX, 1_152_921_504_606_846_976),
    ("7Ei", i64::MAX, 8_070_450_532_247_928_832),
    ("8Ei", i64::MAX, i64::MAX),
    ("100Ei", i64::MAX, i64::MAX),
    ("123456789012345678901234567890n", i64::MAX, i64::MAX),
    ("1.123456789123456789123456789Ei", i64::MAX, 1_295_257_491_676_992_999),
];

/// Refused. apimachinery takes `Gi`, `+` and the like for zero; to us a quantity without a digit is a mistake.
const REFUSED: &[&str] = &[
    "1Gb", "1i", "1.1.1", "abc", "1 Gi", "1m5", "1e", "1e1.5", "1ee3", "--1", "0x10", "Gi", "1K", "1mi", "1KI", "",
    "+", "-", ".", "+Gi", "é", "1é",
];

#[test]
fn quantities_read_as_apimachinery_reads_them() {
    for (text, millis, units) in READINGS.iter().chain(SATURATED) {
        let amount = Amount::parse(text).unwrap();
        assert_eq!((amount.millis(), amount.units()), (*millis, *units), "{text}");
    }
}

#[test]
fn what_is_no_quantity_is_refused_with_its_text() {
    for text in REFUSED {
        let error = Amount::parse(text).expect_err(text);
        assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
    }
}

#[test]
fn exponents_beyond_all_bounds_saturate_or_round_up_to_a_nano() {
    assert_eq!(Amount::parse("1e9223372036854775807").unwrap().units(), i64::MAX);
    assert_eq!(Amount::parse("1e-9223372036854775807").unwrap().units(), 1);
    assert_eq!(Amount::parse("0e9223372036854775807").unwrap(), Amount::ZERO);
    assert_eq!(Amount::parse(&"9".repeat(4_000)).unwrap().units(), i64::MAX);
    assert_eq!(Amount::parse(&format!("-{}", "9".repeat(4_000))).unwrap().units(), i64::MIN);
    assert_eq!(Amount::parse(&format!("0.{}1", "0".repeat(4_000))).unwrap().millis(), 1);
}

#[test]
fn canonical_forms_are_those_of_apimachinery() {
    for (millis, text) in [(0, "0"), (100, "100m"), (1_500, "1500m"), (2_000, "2"), (3_000_000, "3k"), (-500, "-500m")]
    {
        assert_eq!(format_millis(millis), text);
    }
    for (units, text) in [(110, "110"), (1_000, "1k"), (1_500, "1500"), (0, "0"), (2_000_000_000, "2G")] {
        assert_eq!(format_decimal(units), text);
    }
    for (units, text) in [
        (0, "0"),
        (512, "512"),
        (1_000, "1k"),
        (1_023, "1023"),
        (1_024, "1Ki"),
        (1_025, "1025"),
        (1_500 << 20, "1500Mi"),
        (1 << 60, "1Ei"),
        (-2_048, "-2Ki"),
    ] {
        assert_eq!(format_binary(units), text);
    }
}

proptest! {
    #[test]
    fn formats_round_trip(amount in any::<i64>()) {
        prop_assert_eq!(Amount::parse(&format_millis(amount)).unwrap().millis(), amount);
        prop_assert_eq!(Amount::parse(&format_decimal(amount)).unwrap().units(), amount);
        prop_assert_eq!(Amount::parse(&format_binary(amount)).unwrap().units(), amount);
    }

    #[test]
    fn parsing_never_panics(text in "\\PC{0,40}|[+-]?[0-9.]{0,50}[eEinumkKMGTP]{0,3}[+-]?[0-9]{0,4}") {
        let _ = Amount::parse(&text);
    }
}
