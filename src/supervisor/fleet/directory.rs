//! The directory in which a later supervisor finds the workers and their configuration.

use crate::config::Config;
use crate::log::event;
use crate::supervisor::stored;

use super::Fleet;

impl Fleet {
    /// Removes the directory of the rendezvous, if no worker has one there.
    pub(crate) fn close_directory(&mut self) {
        if let Some(directory) = self.directory.take() {
            stored::remove(directory.path(), &self.addresses);
            directory.remove();
        }
    }

    /// Stores the configuration in force with this number of workers.
    pub(crate) fn store_config(&self, workers: u16) {
        let Some(directory) = &self.directory else {
            return;
        };
        let config = Config {
            workers,
            ..self.config().clone()
        };
        if let Err(error) = stored::store(directory.path(), config, &self.addresses) {
            event!(config_not_stored, %error);
        }
    }
}
