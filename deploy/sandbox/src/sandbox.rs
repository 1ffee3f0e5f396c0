//! The handle of a sandbox: everything that the control API can do, as methods.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axum::Router;
use serde_json::{Map, Value};

use crate::api::Api;
use crate::app::{App, Means};
use crate::book::Book;
use crate::callback::Callback;
use crate::events::News;
use crate::faults::Faults;
use crate::grants::popups;
use crate::lock::lock;
use crate::message::Fingerprints;
use crate::msgids::MsgIds;
use crate::push::{self, Push};
use crate::tokens::Tokens;
use crate::{
    Books, Delivery, Event, Granting, Reading, Rule, Settings, Submission, Subscription, clock, control, wechat,
};

/// Why a request to the control API was refused. WeChat's own refusals are answers with an errcode instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The request is invalid. HTTP 400.
    Invalid(String),
    /// The app or the id does not exist. HTTP 404.
    Unknown(String),
}

impl Refused {
    pub(crate) fn invalid(why: impl ToString) -> Self {
        Self::Invalid(why.to_string())
    }

    pub(crate) fn at(list: &str, index: usize, why: &str) -> Self {
        Self::Invalid(format!("{list}[{index}]: {why}"))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(why) | Self::Unknown(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refused {}

/// A simulated WeChat. Clones share its state.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

struct Inner {
    settings: RwLock<Arc<Settings>>,
    apps: RwLock<HashMap<String, Arc<App>>>,
    tokens: Tokens,
    faults: Faults,
    prints: Fingerprints,
    msgids: MsgIds,
    callback: Callback,
    /// Counts calls whose app is unknown: no token, a wrong token, or an unknown app.
    nobody: Mutex<Book>,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("settings", &self.settings()).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Creates a sandbox without apps. The settings are not checked; see [`Settings::check`].
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner {
            settings: RwLock::new(Arc::new(settings)),
            apps: RwLock::default(),
            tokens: Tokens::default(),
            faults: Faults::default(),
            prints: Fingerprints::default(),
            msgids: MsgIds::new(),
            callback: Callback::new(),
            nobody: Mutex::new(Book::new(None)),
        }))
    }

    /// WeChat's endpoints and the control API. Only [`crate::serve`] can cut connections and post events. In other
    /// servers, faults that cut a connection answer HTTP 500 instead, and events stay queued.
    pub fn router(&self) -> Router {
        wechat::routes().merge(control::routes()).with_state(self.clone())
    }

    /// Adds an app, or changes the secret of an existing one.
    ///
    /// # Errors
    /// The app id or the secret is empty.
    pub fn add_app(&self, app_id: &str, secret: &str) -> Result<(), Refused> {
        if app_id.is_empty() || secret.is_empty() {
            return Err(Refused::invalid("app_id and secret must not be empty"));
        }
        let mut apps = self.0.apps.write().unwrap_or_else(PoisonError::into_inner);
        match apps.get(app_id) {
            Some(app) => app.set_secret(secret),
            None => _ = apps.insert(app_id.to_owned(), Arc::new(App::new(app_id, secret))),
        }
        Ok(())
    }

    /// Records forms and payments of users, and returns their ids in the order given. If one submission is invalid,
    /// none is recorded.
    ///
    /// # Errors
    /// The app does not exist, or a submission is invalid (the error names its index).
    pub fn submit(&self, app_id: &str, submissions: Vec<Submission>) -> Result<Vec<String>, Refused> {
        let (app, settings) = (self.known(app_id)?, self.current());
        let ledger = &mut *app.ledger();
        ledger.rights.submit(submissions, &mut ledger.users, clock::now_ms(&settings), &settings)
    }

    /// Records that users accepted in the mini program's pop-up: `subscribe/send` accepts that many more messages. If
    /// one grant is invalid, none is recorded. Each pop-up gives one event, which lists what its user accepted in it. A
    /// count of three gives three pop-ups.
    ///
    /// # Errors
    /// The app does not exist, a grant is invalid (the error names its index), or the counts add up to more than a
    /// million.
    pub fn grant(&self, app_id: &str, grants: Vec<Granting>) -> Result<(), Refused> {
        let app = self.known(app_id)?;
        {
            let ledger = &mut *app.ledger();
            ledger.grants.accept(&grants, &mut ledger.users)?;
        }
        let answers = grants.iter().map(|one| (one.openid.as_str(), one.template_id.as_str(), one.count));
        self.tell_all(&app, answers, |templates| News::Popup { templates, accepted: true });
        Ok(())
    }

    /// Records that users rejected in the pop-up: all their grants for these templates are revoked. If one rejection is
    /// invalid, none is recorded. Each pop-up gives one event.
    ///
    /// # Errors
    /// The app does not exist, or a rejection is invalid (the error names its index).
    pub fn reject(&self, app_id: &str, rejections: Vec<Subscription>) -> Result<(), Refused> {
        self.end_grants(app_id, "rejections", &rejections, |templates| News::Popup { templates, accepted: false })
    }

    /// Records that users switched these templates off in the settings of the mini program. Same as
    /// [`Sandbox::reject`], with the other event.
    ///
    /// # Errors
    /// The app does not exist, or a withdrawal is invalid (the error names its index).
    pub fn withdraw(&self, app_id: &str, withdrawals: Vec<Subscription>) -> Result<(), Refused> {
        self.end_grants(app_id, "withdrawals", &withdrawals, |templates| News::Change { templates })
    }

    /// Pushes these events as they are, and changes nothing else. If one is invalid, none is pushed.
    ///
    /// # Errors
    /// The app does not exist, or an event is invalid (the error names its index).
    pub fn push(&self, app_id: &str, events: Vec<Push>) -> Result<(), Refused> {
        let app = self.known(app_id)?;
        push::check_all(&events)?;
        for event in events {
            let (openid, times) = (event.openid.clone(), event.times);
            let news = News::Asked(event);
            (0..times).for_each(|_| self.tell(&app, &openid, &news));
        }
        Ok(())
    }

    fn end_grants(
        &self,
        app_id: &str,
        list: &str,
        ended: &[Subscription],
        news: impl Fn(Vec<String>) -> News,
    ) -> Result<(), Refused> {
        let app = self.known(app_id)?;
        {
            let ledger = &mut *app.ledger();
            ledger.grants.void(list, ended, &mut ledger.users)?;
        }
        self.tell_all(&app, ended.iter().map(|one| (one.openid.as_str(), one.template_id.as_str(), 1)), news);
        Ok(())
    }

    fn tell_all<'a>(
        &self,
        app: &Arc<App>,
        answers: impl Iterator<Item = (&'a str, &'a str, u32)>,
        news: impl Fn(Vec<String>) -> News,
    ) {
        for (openid, templates) in popups(answers) {
            self.tell(app, openid, &news(templates.into_iter().map(str::to_owned).collect()));
        }
    }

    /// Stores an event, and queues it for the callback if one is set.
    pub(crate) fn tell(&self, app: &Arc<App>, openid: &str, news: &News) {
        let settings = self.current();
        let event = {
            let mut kept = app.events();
            let event = Event::new(kept.next(), &app.id, openid, news, clock::now_ms(&settings), &settings);
            kept.push(event.clone(), settings.keep_events);
            event
        };
        app.ledger().book.events().made += 1;
        if !settings.callback_url.is_empty() {
            self.0.callback.tell(app, event, &settings);
        }
    }

    /// Blocks an id: sends with it answer 41031 from now on.
    ///
    /// # Errors
    /// The app or the id does not exist.
    pub fn block(&self, app_id: &str, id: &str) -> Result<(), Refused> {
        let blocked = self.known(app_id)?.ledger().rights.block(id);
        if blocked { Ok(()) } else { Err(Refused::Unknown("no such id was ever submitted to this app".into())) }
    }

    /// Deliveries, oldest first.
    ///
    /// # Errors
    /// The app does not exist, or the limit is 0.
    pub fn deliveries(&self, app_id: &str, reading: &Reading) -> Result<Vec<Delivery>, Refused> {
        self.known(app_id)?.ledger().book.read(reading)
    }

    /// Events for the app's server, oldest first. They are stored also without a callback.
    ///
    /// # Errors
    /// The app does not exist, or the limit is 0.
    pub fn events(&self, app_id: &str, reading: &Reading) -> Result<Vec<Event>, Refused> {
        self.known(app_id)?.events().read(reading)
    }

    /// Totals of one app, or of all apps and the calls whose app is unknown.
    ///
    /// # Errors
    /// The app does not exist.
    pub fn books(&self, app_id: Option<&str>) -> Result<Books, Refused> {
        if let Some(app_id) = app_id {
            return Ok(self.known(app_id)?.sums());
        }
        let mut sums = lock(&self.0.nobody).sums();
        self.all().iter().for_each(|app| sums.add(app.sums()));
        Ok(sums)
    }

    pub fn settings(&self) -> Settings {
        Settings::clone(&self.current())
    }

    /// Replaces all settings, and resets the daily quotas.
    ///
    /// # Errors
    /// [`Settings::check`] refuses them. The settings then stay as they were.
    pub fn set_settings(&self, settings: Settings) -> Result<(), Refused> {
        settings.check()?;
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.reset_quota();
        Ok(())
    }

    /// Replaces only the given fields, and resets those daily quotas that are among them.
    ///
    /// # Errors
    /// A field is unknown or has the wrong type, or [`Settings::check`] refuses the result. Nothing changes then.
    pub fn change_settings(&self, fields: Map<String, Value>) -> Result<Settings, Refused> {
        let named = [("daily_quota", Api::Template), ("subscribe_daily_quota", Api::Subscribe)]
            .into_iter()
            .filter_map(|(field, api)| fields.contains_key(field).then_some(api))
            .collect::<Vec<_>>();
        let changed = {
            let mut current = self.0.settings.write().unwrap_or_else(PoisonError::into_inner);
            let changed = current.with(fields)?;
            *current = Arc::new(changed.clone());
            changed
        };
        self.reset_quotas(&named);
        Ok(changed)
    }

    /// Resets the daily quotas of every app.
    pub fn reset_quota(&self) {
        self.reset_quotas(&Api::ALL);
    }

    fn reset_quotas(&self, apis: &[Api]) {
        for app in self.all() {
            let mut ledger = app.ledger();
            apis.iter().for_each(|api| ledger.pace(*api).reset_day());
        }
    }

    /// Appends fault rules. If one is invalid, none is added.
    ///
    /// # Errors
    /// A rule is invalid (the error names its index).
    pub fn add_faults(&self, rules: Vec<Rule>) -> Result<(), Refused> {
        self.0.faults.add(rules, &self.current())
    }

    /// The fault rules, in the order they are tried.
    pub fn faults(&self) -> Vec<Rule> {
        self.0.faults.list()
    }

    pub fn clear_faults(&self) {
        self.0.faults.clear();
    }

    pub(crate) fn current(&self) -> Arc<Settings> {
        Arc::clone(&self.0.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn app(&self, app_id: &str) -> Option<Arc<App>> {
        self.0.apps.read().unwrap_or_else(PoisonError::into_inner).get(app_id).cloned()
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    pub(crate) fn fault_rules(&self) -> &Faults {
        &self.0.faults
    }

    pub(crate) fn callback(&self) -> &Callback {
        &self.0.callback
    }

    /// Further input for the decision about a send, in addition to the app.
    pub(crate) fn means<'a>(&'a self, now_ms: u64, settings: &'a Settings) -> Means<'a> {
        Means { prints: &self.0.prints, msgids: &self.0.msgids, now_ms, settings }
    }

    /// Updates the book of the app, or that of calls whose app is unknown.
    pub(crate) fn note(&self, app: Option<&App>, write: impl FnOnce(&mut Book)) {
        match app {
            Some(app) => write(&mut app.ledger().book),
            None => write(&mut lock(&self.0.nobody)),
        }
    }

    pub(crate) fn known(&self, app_id: &str) -> Result<Arc<App>, Refused> {
        self.app(app_id).ok_or_else(|| Refused::Unknown("no such app: add it with POST /sandbox/apps".into()))
    }

    fn all(&self) -> Vec<Arc<App>> {
        self.0.apps.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
