//! Rules for the values of a subscription message. WeChat derives the kind of a value from its key (`thing1`,
//! `amount3`) and refuses a message with 47003 if a value does not fit its kind. A failed send could cost a grant, so
//! values that WeChat certainly refuses are reported before sending.
//!
//! What WeChat documents is fine. What its documents exclude and senders report as refused, and what cannot be right,
//! is wrong. Everything else passes with a warning: senders report values that pass although they are not documented.
//! Reports also say how WeChat counts: each character as one, Chinese or not.

mod moment;
#[cfg(test)]
mod tests;

use moment::Moment;

/// How WeChat is expected to treat a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Fine,
    /// WeChat may refuse or truncate it; the text says why.
    Doubtful(&'static str),
    /// WeChat certainly refuses it; the text says what the value must be.
    Wrong(&'static str),
}

use Judgement::{Doubtful, Fine, Wrong};

type Test = fn(&str) -> bool;

/// Values, and what to say about them.
type Check = (Test, &'static str);

struct Kind {
    /// The prefix of the keys.
    name: &'static str,
    length: Option<Length>,
    /// Values that WeChat certainly refuses.
    wrong: &'static [Check],
    documented: Test,
    /// What to say about a value that is neither wrong nor documented.
    otherwise: &'static str,
}

/// The longest value of a kind.
struct Length {
    characters: usize,
    /// The same for a value that has a Chinese character.
    with_chinese: usize,
    longer: Judgement,
    /// Whether a longer text may be cut: people read it, and understand its beginning. A number, a time, a code or a
    /// word of a list means something else when it is cut.
    cut: bool,
}

impl Length {
    const fn most(characters: usize, longer: Judgement) -> Self {
        Self { characters, with_chinese: characters, longer, cut: false }
    }

    fn of(&self, value: &str) -> usize {
        if any(value, is_chinese) { self.with_chinese } else { self.characters }
    }
}

const KINDS: &[Kind] = &[
    Kind {
        name: "thing",
        length: Some(Length { cut: true, ..Length::most(20, Wrong("must be at most 20 characters")) }),
        wrong: &[],
        documented: |value| all(value, is_text) && utf16(value) <= 20,
        otherwise: RARE_CHARACTERS,
    },
    // WeChat's templates have this kind, its documents do not.
    Kind {
        name: "short_thing",
        length: Some(Length {
            cut: true,
            ..Length::most(5, Doubtful("has more than 5 characters, which WeChat is reported to refuse"))
        }),
        wrong: &[],
        documented: |value| all(value, is_text) && utf16(value) <= 5,
        otherwise: RARE_CHARACTERS,
    },
    Kind {
        name: "number",
        length: None,
        wrong: &[
            (is_negative, "must not have a minus sign"),
            (|value| !is_number(value), "must be a number of at most 32 digits; decimals are allowed"),
        ],
        documented: is_decimal,
        otherwise: "is not only digits with optional decimals, as documented",
    },
    Kind {
        name: "letter",
        length: Some(Length::most(32, Wrong("must be at most 32 letters"))),
        wrong: &[(
            |value| any(value, |c| is_chinese(c) || !(c.is_alphabetic() || c.is_whitespace())),
            "must be at most 32 letters",
        )],
        documented: |value| all(value, |c| c.is_ascii_alphabetic()),
        otherwise: "has spaces or letters outside ASCII, and only letters are documented",
    },
    Kind {
        name: "symbol",
        length: Some(Length::most(5, Wrong("must be at most 5 symbols"))),
        wrong: &[],
        documented: |value| all(value, is_symbol),
        otherwise: "has other characters than symbols, and only symbols are documented",
    },
    Kind {
        name: "character_string",
        length: Some(Length::most(32, Wrong("must be at most 32 digits, letters and symbols"))),
        wrong: &[(|value| any(value, is_chinese), "must not have Chinese characters: digits, letters and symbols")],
        documented: |value| all(value, |c| c.is_ascii_graphic()),
        otherwise: "has spaces or characters outside ASCII, and only digits, letters and symbols are documented",
    },
    Kind {
        name: "phrase",
        length: Some(Length::most(5, Wrong("must be at most 5 Chinese characters"))),
        wrong: &[(|value| any(value, is_digit), "must not have digits: at most 5 Chinese characters")],
        documented: |value| all(value, is_chinese),
        otherwise: "has characters that are not Chinese",
    },
    Kind {
        name: "name",
        length: Some(Length {
            with_chinese: 10,
            cut: true,
            ..Length::most(20, Wrong("must be at most 10 characters if any is Chinese, otherwise 20"))
        }),
        wrong: &[(|value| any(value, is_digit), "must not have digits: Chinese characters, letters and symbols")],
        documented: |value| all(value, |c| is_chinese(c) || c.is_ascii_alphabetic() || is_symbol(c) || c == ' '),
        otherwise: "has characters that are neither Chinese nor letters nor symbols",
    },
    Kind {
        name: "amount",
        length: None,
        wrong: &[
            (is_negative, "must not have a minus sign"),
            (
                |value| !is_amount(value),
                "must be at most one currency sign, up to 10 digits, optional decimals, and optionally 元 at the end",
            ),
        ],
        documented: |value| is_decimal(without_currency(value)),
        otherwise: "is not only a currency sign, digits with optional decimals, and 元, as documented",
    },
    Kind {
        name: "phone_number",
        length: Some(Length::most(17, Wrong("must be at most 17 digits and symbols"))),
        wrong: &[(|value| !any(value, char::is_numeric), "must have digits")],
        documented: |value| all(value, |c| is_digit(c) || c.is_ascii_punctuation()),
        otherwise: "has other characters than digits and symbols, and only these are documented",
    },
    Kind {
        name: "car_number",
        length: Some(Length::most(8, Wrong("must be at most 8 characters"))),
        wrong: &[],
        documented: is_car_number,
        otherwise: "is not letters and digits, of which the first and the last may be Chinese",
    },
    Kind {
        name: "date",
        length: None,
        wrong: NO_MOMENT,
        documented: |value| Moment::of(value).is_some_and(|moment| moment.exists && moment.date),
        otherwise: "does not look like 2019年10月1日 or 2019年10月1日 15:01, or two of them with ~ between",
    },
    Kind {
        name: "time",
        length: None,
        wrong: NO_MOMENT,
        documented: |value| Moment::of(value).is_some_and(|moment| moment.exists && moment.time),
        otherwise: "does not look like 15:01 or 2019年10月1日 15:01, or two of them with ~ between",
    },
    // Values of a list that each template has for itself.
    anything("enum"),
    anything("enum_string"),
    anything("const"),
];

const RARE_CHARACTERS: &str = "has characters, such as emoji, that are not documented, or that WeChat may count as two";

const NO_MOMENT: &[Check] = &[
    (|value| !any(value, char::is_numeric), "must be a time or a date, such as 15:01 or 2019年10月1日 15:01"),
    (moment::is_iso_8601, "must not be in the format of ISO 8601, but like 2019-10-01 15:01, in the user's time zone"),
    (moment::is_impossible, "must be a date and a time that exist"),
];

const fn anything(name: &'static str) -> Kind {
    Kind { name, length: None, wrong: &[], documented: |_| true, otherwise: "" }
}

impl Kind {
    /// The kind of a key: its name without the number at the end.
    fn of(key: &str) -> Option<&'static Self> {
        let name = key.trim_end_matches(is_digit);
        KINDS.iter().find(|kind| kind.name == name && name.len() < key.len())
    }
}

/// Checks the value of a key.
pub fn judge(key: &str, value: &str) -> Judgement {
    if value.is_empty() {
        return Wrong("must not be empty");
    }
    if any(value, |c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        return Wrong("must not have control characters or line breaks");
    }
    let Some(kind) = Kind::of(key) else {
        return Doubtful("has a key of an unknown kind, or without a number; expected a key such as thing1");
    };
    if let Some((_, sentence)) = kind.wrong.iter().find(|(is_wrong, _)| is_wrong(value)) {
        return Wrong(sentence);
    }
    match &kind.length {
        Some(length) if count(value) > length.of(value) => length.longer,
        _ if value.trim().is_empty() => Doubtful("has only spaces"),
        _ if (kind.documented)(value) => Fine,
        _ => Doubtful(kind.otherwise),
    }
}

/// Cuts a text that is too long for its key, and ends it with an ellipsis. `None` if the text is short enough, or must
/// not be cut. Also returns the number of characters that the key permits.
pub fn fit(key: &str, value: &str) -> Option<(String, usize)> {
    let length = Kind::of(key)?.length.as_ref().filter(|length| length.cut)?;
    let most = length.of(value);
    if count(value) <= most {
        return None;
    }
    let characters: Vec<char> = value.chars().take(most).collect();
    let ends = |at: &usize| !continues(characters[*at - 1], characters[*at]);
    // A text that is a single long sequence is cut within it.
    let end = (1..most).rev().find(ends).unwrap_or(most - 1);
    let kept: String = characters[..end].iter().collect();
    Some((format!("{}…", kept.trim_end()), most))
}

/// Whether the second of two characters only changes how the first one looks.
fn continues(first: char, second: char) -> bool {
    first == '\u{200d}'
        || matches!(second,
            '\u{300}'..='\u{36f}' | '\u{200d}' | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{1f3fb}'..='\u{1f3ff}' | '\u{e0020}'..='\u{e007f}')
}

fn count(value: &str) -> usize {
    value.chars().count()
}

fn utf16(value: &str) -> usize {
    value.chars().map(char::len_utf16).sum()
}

fn any(value: &str, what: impl Fn(char) -> bool) -> bool {
    value.chars().any(what)
}

fn all(value: &str, what: impl Fn(char) -> bool) -> bool {
    value.chars().all(what)
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// Chinese characters, including the extensions.
fn is_chinese(c: char) -> bool {
    matches!(c,
        '〇' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

/// True for visible characters that are not letters, digits or emoji.
fn is_symbol(c: char) -> bool {
    let is_emoji = matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{10000}'..);
    let is_invisible =
        matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !(c.is_alphanumeric() || c.is_whitespace() || c.is_control() || is_emoji || is_invisible)
}

fn is_text(c: char) -> bool {
    is_chinese(c) || c.is_alphanumeric() || c.is_whitespace() || is_symbol(c)
}

/// True if a minus sign precedes the digits.
fn is_negative(value: &str) -> bool {
    value.chars().take_while(|c| !c.is_numeric()).any(|c| matches!(c, '-' | '\u{2212}' | '\u{ff0d}'))
}

/// True for digits, optionally with a decimal point between them.
fn is_decimal(value: &str) -> bool {
    let (whole, decimals) = value.split_once('.').unwrap_or((value, "0"));
    [whole, decimals].iter().all(|part| !part.is_empty() && all(part, is_digit))
}

/// True for what may be a number: digits, no letters, and at most one decimal point.
fn is_number(value: &str) -> bool {
    let digits = value.chars().filter(|c| c.is_numeric()).count();
    (1..=32).contains(&digits) && !any(value, char::is_alphabetic) && value.matches('.').count() <= 1
}

const CURRENCY_SIGNS: &[char] = &['¥', '￥', '$', '＄', '€', '£', '₩', '₽', '₹', '฿', '₫', '₱', '₺', '₴'];

fn without_currency(value: &str) -> &str {
    let number = value.strip_prefix(CURRENCY_SIGNS).unwrap_or(value);
    number.strip_suffix('元').unwrap_or(number)
}

/// True for what may be an amount: at most one currency sign and one decimal point, and at most 10 digits before that.
fn is_amount(value: &str) -> bool {
    let whole = value.split('.').next().unwrap_or_default();
    let digits = whole.chars().filter(|c| c.is_numeric()).count();
    digits <= 10
        && any(value, char::is_numeric)
        && value.matches('.').count() <= 1
        && value.matches(CURRENCY_SIGNS).count() <= 1
}

fn is_car_number(value: &str) -> bool {
    let middle = value.strip_prefix(is_chinese).unwrap_or(value);
    let middle = middle.strip_suffix(is_chinese).unwrap_or(middle);
    all(middle, |c| c.is_ascii_alphanumeric())
}
