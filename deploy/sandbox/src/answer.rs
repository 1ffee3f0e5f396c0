//! WeChat's answers: errcodes, their texts, and the JSON.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::clock;

/// Errcodes that the sandbox itself decides on. Fault rules and the `answer` settings may send any other.
pub(crate) mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const TOKEN_UNKNOWN: i32 = 40001;
    pub(crate) const WRONG_GRANT_TYPE: i32 = 40002;
    pub(crate) const OPENID_UNKNOWN: i32 = 40003;
    pub(crate) const APP_UNKNOWN: i32 = 40013;
    pub(crate) const TEMPLATE_UNKNOWN: i32 = 40037;
    pub(crate) const NO_SUCH_URL: i32 = 40066;
    pub(crate) const WRONG_SECRET: i32 = 40125;
    pub(crate) const TOKEN_MISSING: i32 = 41001;
    pub(crate) const SAME_MESSAGE: i32 = 40241;
    pub(crate) const IN_REVIEW: i32 = 40252;
    pub(crate) const APP_MISSING: i32 = 41002;
    pub(crate) const SECRET_MISSING: i32 = 41004;
    pub(crate) const FORM_ID_WRONG: i32 = 41028;
    pub(crate) const FORM_ID_USED: i32 = 41029;
    pub(crate) const PAGE_WRONG: i32 = 41030;
    pub(crate) const FORM_ID_BLOCKED: i32 = 41031;
    pub(crate) const TOKEN_EXPIRED: i32 = 42001;
    pub(crate) const GET_REQUIRED: i32 = 43001;
    pub(crate) const POST_REQUIRED: i32 = 43002;
    pub(crate) const NO_GRANT: i32 = 43101;
    pub(crate) const USER_BUSY: i32 = 43108;
    pub(crate) const TEMPLATE_BANNED: i32 = 43116;
    pub(crate) const QUOTA_REACHED: i32 = 45009;
    pub(crate) const TOO_FAST: i32 = 45011;
    pub(crate) const BODY_WRONG: i32 = 47001;
    pub(crate) const ARGUMENT_WRONG: i32 = 47003;
    pub(crate) const NOT_PERMITTED: i32 = 48001;
    pub(crate) const CLEARED_TOO_OFTEN: i32 = 48006;
    pub(crate) const CGI_PATH_UNKNOWN: i32 = 76021;
}

/// WeChat's texts of the errcodes, for people who read an answer. A caller must not match on them: WeChat changes them.
/// `{}` is the detail of a refusal, or what [`EXAMPLES`] has for it.
const TEXTS: &[(i32, &str)] = &[
    (-1, "system error"),
    (20001, "system error"),
    (code::TOKEN_UNKNOWN, "invalid credential, access_token is invalid or not latest"),
    (code::WRONG_GRANT_TYPE, "invalid grant_type"),
    (code::OPENID_UNKNOWN, "invalid openid"),
    (code::APP_UNKNOWN, "invalid appid"),
    (40014, "invalid access_token"),
    (40033, "invalid charset. please check your request, if include \\uxxxx will create fail!"),
    (40035, "invalid parameter"),
    (40036, "invalid template_id size"),
    (code::TEMPLATE_UNKNOWN, "invalid template_id"),
    (code::NO_SUCH_URL, "invalid url"),
    (40097, "invalid args"),
    (code::WRONG_SECRET, "invalid appsecret"),
    (40164, "invalid ip {} ipv6 ::ffff:{}, not in whitelist"),
    (code::SAME_MESSAGE, "the same message was sent within 60 seconds"),
    (40243, "AppSecret is frozen"),
    (40249, "invalid message content"),
    (40250, "invalid message content"),
    (40251, "reach today's limit because of violations"),
    (code::IN_REVIEW, "the message is in review, and is sent when it passes"),
    (code::TOKEN_MISSING, "access_token missing"),
    (code::APP_MISSING, "appid missing"),
    (code::SECRET_MISSING, "appsecret missing"),
    (41018, "api not authorized"),
    (code::FORM_ID_WRONG, "invalid form id"),
    (code::FORM_ID_USED, "form id used count reach limit"),
    (code::PAGE_WRONG, "invalid page"),
    (code::FORM_ID_BLOCKED, "form id is blocked"),
    (41032, "not allow to send message with submitted form id"),
    (41034, "not allow to send message with submitted form id"),
    (41035, "not allow to send message with prepay id"),
    (code::TOKEN_EXPIRED, "access_token expired"),
    (code::GET_REQUIRED, "require GET method"),
    (code::POST_REQUIRED, "require POST method"),
    (43003, "require https"),
    (43004, "require subscribe"),
    (43005, "require friend relations"),
    (43019, "require remove blacklist"),
    (code::NO_GRANT, "user refuse to accept the msg"),
    (43104, "no permission to send subscribe message"),
    (43107, "the ability of subscribe messages is banned"),
    (code::USER_BUSY, "concurrent request for the same openid"),
    (code::TEMPLATE_BANNED, "this template is banned"),
    (43117, "send too frequently to the same user"),
    (44002, "empty post data"),
    (45002, "content size out of limit"),
    (code::QUOTA_REACHED, "reach max api daily quota limit"),
    (code::TOO_FAST, "api minute-quota reach limit, must slower, retry next minute"),
    (45029, "reach the message limit of today"),
    (45035, "access clientip {} is not registered, requestIP: {}"),
    (45102, "the app is blocked"),
    (45103, "this api has been retired"),
    (45168, "hit sensitive words"),
    (45501, "the app is blocked"),
    (code::BODY_WRONG, "data format error"),
    (code::ARGUMENT_WRONG, "argument invalid! {}"),
    (code::NOT_PERMITTED, "api unauthorized"),
    (48002, "user block receive message"),
    (48004, "api forbidden for irregularities, view detail on mp.weixin.qq.com"),
    (code::CLEARED_TOO_OFTEN, "forbid to clear quota because of reaching the limit"),
    (50001, "user unauthorized api"),
    (50002, "user limited"),
    (50004, "api forbidden for this account"),
    (50005, "user unsubscribe"),
    (50007, "account is frozen"),
    (61003, "component is not authorized by this account"),
    (61004, "access clientip is not registered requestIP: {}"),
    (61007, "api is unauthorized to component"),
    (61014, "must use component token for component api"),
    (61016, "must use api(api_component_token) to get token for component acct"),
    (61024, "must use component token for component api"),
    (61450, "system error"),
    (code::CGI_PATH_UNKNOWN, "cgi_path not found, please check"),
    (76022, "could not use this cgi_path, no permission"),
    (89501, "this ip {} is waiting for the administrator's confirmation"),
    (89503, "this call needs the administrator's confirmation"),
    (89506, "this ip {} was refused by the administrator twice within 24 hours"),
    (89507, "this ip {} was refused by the administrator within an hour"),
];

/// What a text names if the refusal has no detail, as in an answer of a fault rule. Other texts name the address of the
/// caller.
const EXAMPLES: &[(i32, &str)] = &[(code::ARGUMENT_WRONG, "data.thing1.value invalid")];

/// A refusal by WeChat: the errcode, and which argument is wrong, if known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct No {
    pub(crate) code: i32,
    detail: String,
}

impl No {
    pub(crate) fn code(code: i32) -> Self {
        Self { code, detail: String::new() }
    }

    /// 47003, with the name of the argument, such as `data.keyword1.value`.
    pub(crate) fn argument(path: impl Into<String>) -> Self {
        Self { code: code::ARGUMENT_WRONG, detail: path.into() }
    }

    /// A refusal with a text from outside.
    pub(crate) fn with(code: i32, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// WeChat's text, with the detail in its place, or after it.
    fn text(&self) -> String {
        let of =
            |table: &[(i32, &'static str)]| table.iter().find(|(code, _)| *code == self.code).map(|(_, text)| *text);
        let text = of(TEXTS).unwrap_or("refused");
        match (text.contains("{}"), self.detail.as_str()) {
            (true, "") => text.replace("{}", of(EXAMPLES).unwrap_or("127.0.0.1")),
            (true, detail) => text.replace("{}", detail),
            (false, "") => text.to_owned(),
            (false, detail) => format!("{text} {detail}"),
        }
    }

    fn message(&self) -> String {
        let text = self.text();
        // WeChat's own request ids also begin with the time.
        let random: u64 = rand::random();
        let seconds = clock::real_ms() / 1000;
        let (high, low) = (random >> 32, random & 0xffff_ffff);
        format!("{text} rid: {seconds:08x}-{high:08x}-{low:08x}")
    }
}

/// The answer to an accepted send. Only subscription messages have a message id.
pub(crate) fn sent(msgid: Option<u64>) -> Response {
    match msgid {
        None => bytes(&br#"{"errcode":0,"errmsg":"ok"}"#[..]),
        Some(msgid) => bytes(format!(r#"{{"errcode":0,"errmsg":"ok","msgid":{msgid}}}"#)),
    }
}

pub(crate) fn refusal(no: &No) -> Response {
    #[derive(Serialize)]
    struct Body {
        errcode: i32,
        errmsg: String,
    }
    json(&Body { errcode: no.code, errmsg: no.message() })
}

/// HTTP 200 with a JSON body. WeChat answers everything this way.
pub(crate) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => bytes(body),
        Err(error) => {
            tracing::error!(%error, "failed to serialize an answer");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn bytes(body: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/json; encoding=utf-8")], body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_the_argument_and_ends_in_a_request_id() {
        let message = No::argument("data.keyword1.value").message();
        let (text, rid) = message.split_once(" rid: ").unwrap();
        assert_eq!(text, "argument invalid! data.keyword1.value");
        let parts: Vec<&str> = rid.split('-').collect();
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|part| part.len() == 8 && part.bytes().all(|b| b.is_ascii_hexdigit())), "{rid}");
    }

    #[test]
    fn texts_name_the_address_or_the_argument() {
        for (no, text) in [
            (No::code(40164), "invalid ip 127.0.0.1 ipv6 ::ffff:127.0.0.1, not in whitelist"),
            (No::with(61004, "203.0.113.7"), "access clientip is not registered requestIP: 203.0.113.7"),
            (No::code(47003), "argument invalid! data.thing1.value invalid"),
            (No::with(47003, "data.number2.value is empty"), "argument invalid! data.number2.value is empty"),
            (No::with(43116, "since today"), "this template is banned since today"),
        ] {
            assert_eq!(no.text(), text);
        }
    }

    #[test]
    fn texts_are_sorted() {
        assert!(TEXTS.is_sorted_by(|(one, _), (other, _)| one < other));
    }

    #[test]
    fn code_without_a_text_still_answers() {
        assert!(No::code(99999).message().starts_with("refused rid: "));
    }
}
