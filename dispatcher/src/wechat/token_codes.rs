//! The meaning of the codes of the token endpoints. This table is separate from [`crate::wechat::errcode`], because a
//! code can have another meaning here: 40001 is a wrong secret, not an invalid token.

use crate::wechat::errcode::NOT_ON_IP_LIST;

/// Whether waiting helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It may: try again after a pause.
    Transient,
    /// It does not: an operator has to change something.
    Final,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub errcode: i32,
    pub weight: Weight,
    /// The errmsg names the address that WeChat saw: see [`crate::wechat::errcode::seen_address`].
    pub about_address: bool,
    /// The problem and, if an operator can fix it, the fix.
    pub sentence: &'static str,
}

const fn passes(errcode: i32, sentence: &'static str) -> Row {
    Row { errcode, weight: Weight::Transient, about_address: false, sentence }
}

const fn fails(errcode: i32, sentence: &'static str) -> Row {
    Row { errcode, weight: Weight::Final, about_address: false, sentence }
}

const fn address(errcode: i32, sentence: &'static str) -> Row {
    Row { about_address: true, ..fails(errcode, sentence) }
}

const CHECK_BASE_URL: &str =
    "the call does not arrive as it was sent: check that base_url leads to WeChat or to a gateway with the same API";

const CHECK_ACCOUNT: &str = "the app may not fetch tokens: check the state of the account in the WeChat console";

/// All known codes, in ascending order.
pub const TABLE: &[Row] = &[
    passes(-1, "WeChat is busy"),
    fails(40001, "the secret is wrong: compare it with the app's in the WeChat console, where it may have been reset"),
    fails(40002, "the grant type is refused: check that base_url leads to WeChat or to a gateway with the same API"),
    fails(40013, "the app id is wrong: correct it in the apps file"),
    fails(40125, "the secret is not valid: copy it again from the WeChat console"),
    address(40164, NOT_ON_IP_LIST),
    fails(40243, "the secret is frozen: an administrator of the app must unfreeze it in the WeChat console"),
    fails(41002, CHECK_BASE_URL),
    fails(41004, CHECK_BASE_URL),
    fails(43002, CHECK_BASE_URL),
    passes(45009, "the daily number of token calls is used up"),
    passes(45011, "too many token calls in a short time"),
    address(45035, NOT_ON_IP_LIST),
    fails(47001, CHECK_BASE_URL),
    fails(48001, CHECK_ACCOUNT),
    fails(50002, "the app is limited: check the state of the account in the WeChat console"),
    fails(50004, CHECK_ACCOUNT),
    fails(50007, "the account of the app is frozen: unfreeze it in the WeChat console"),
    address(61004, NOT_ON_IP_LIST),
    fails(61014, CHECK_ACCOUNT),
    fails(
        61024,
        "a third-party platform fetches the tokens of this app: it must send the messages, or end the authorization",
    ),
    address(89501, "this address is waiting for approval by an administrator of the app in WeChat"),
    address(89503, "this address is waiting for approval by an administrator of the app in WeChat"),
    address(
        89506,
        "an administrator of the app refused this address twice: WeChat accepts it in 24 hours at the earliest",
    ),
    address(89507, "an administrator of the app refused this address: WeChat accepts it in an hour at the earliest"),
];

/// Returns the row of a code. A code that is not in the table is final: with `token`, WeChat permits 2,000 calls a day.
pub fn row_of(errcode: i32) -> Row {
    match TABLE.binary_search_by_key(&errcode, |row| row.errcode) {
        Ok(found) => TABLE[found],
        Err(_) => fails(errcode, "the errcode is unknown: look it up in WeChat's documents, or ask WeChat's support"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_every_row_is_found() {
        assert!(TABLE.is_sorted_by(|a, b| a.errcode < b.errcode));
        for row in TABLE {
            let found = row_of(row.errcode);
            assert_eq!((found.errcode, found.weight), (row.errcode, row.weight));
        }
    }

    #[test]
    fn only_three_errcodes_pass_by_themselves() {
        let transient: Vec<_> = TABLE.iter().filter(|row| row.weight == Weight::Transient).collect();
        assert_eq!(transient.iter().map(|row| row.errcode).collect::<Vec<_>>(), [-1, 45009, 45011]);
        assert_eq!(row_of(99999).weight, Weight::Final);
    }
}
