//! Tokens from a file that another program keeps up to date.

use std::sync::Arc;

use server::reload::{Contents, INTERVAL, Watched};
use server::telemetry::metrics::files::FileMetrics;
use server::telemetry::metrics::registry::Registry;

use super::source::{Source, in_file};
use super::{Inner, Token};
use crate::token_source::TokenFile;
use crate::wechat::error::{SourceFault, SourceKey, TokenError, Trouble};

impl Inner {
    /// Reads the token from the file. Fails if WeChat rejected this token a short time ago.
    pub(super) async fn read_file(&self, file: TokenFile) -> Result<Arc<Token>, TokenError> {
        let path = file.path.clone();
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
        let content = read.map_err(|_| TokenError::Transient(Trouble::Stopping))?;
        let content = content.map_err(|error| SourceFault::Unreadable(error.kind()));
        let token = content.and_then(|content| self.usable_in(&file, &content));
        let token = token.map_err(|fault| SourceKey::TokenFile.fails(fault));
        if let Some(metrics) = self.client.metrics() {
            metrics.count_token(&token);
        }
        Ok(self.install(Token::lasting(token?)))
    }

    /// Takes the token of a file whenever the file changes. Without a token file, returns at once.
    pub(super) async fn follow_file(&self) {
        let Source::File(file) = &self.source else { return };
        let (files, outages) = match self.client.metrics() {
            Some(metrics) => (metrics.files.clone(), metrics.reloads.clone()),
            None => match FileMetrics::new(&Registry::default()) {
                Ok(files) => (files, Default::default()),
                Err(_) => return,
            },
        };
        let in_use = files.in_use(&format!("token_file/{}", self.app));
        in_use.set(0);
        let watched = loop {
            let paths = [file.path.clone()];
            let read = tokio::task::spawn_blocking(|| Watched::read(paths)).await;
            // Until there is a token in the file, the attempts to obtain one report why not.
            if let Ok(Ok((watched, contents))) = read
                && self.file_changed(file, &contents).is_ok()
            {
                break watched;
            }
            tokio::time::sleep(INTERVAL).await;
        };
        let what = format!("the token file of app {}", self.app);
        watched.follow(&what, &in_use, &outages, |contents| self.file_changed(file, &contents)).await;
    }

    /// Finds the token in the content of the file, if it may be used.
    fn usable_in(&self, file: &TokenFile, content: &[u8]) -> Result<String, SourceFault> {
        let token = in_file(file, content)?;
        if self.is_rejected(&token) { Err(SourceFault::Rejected) } else { Ok(token) }
    }

    fn file_changed(&self, file: &TokenFile, contents: &Contents) -> Result<(), SourceFault> {
        let token = self.usable_in(file, &contents.concat())?;
        if self.valid().is_none_or(|current| current.value() != token) {
            self.install(Token::lasting(token));
            // Whoever holds the state is reading the file.
            if let Ok(mut state) = self.state.try_lock() {
                state.note(&self.app, Ok(()));
            }
        }
        Ok(())
    }
}
