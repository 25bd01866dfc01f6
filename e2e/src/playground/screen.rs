//! The terminal: a screen of its own, drawn whole, and the key `q`.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// The terminal in full-screen mode; as it was again when dropped.
pub(super) struct Screen {
    before: Option<Termios>,
    keys: mpsc::Receiver<u8>,
}

impl Screen {
    /// Takes the terminal. Ctrl-C still is a signal.
    pub(super) fn enter() -> Result<Self> {
        // Without a terminal to type on, there is only Ctrl-C.
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(std::io::stdin(), OptionalActions::Now, &quiet).context("setting the terminal up")?;
        }
        let (send, keys) = mpsc::channel(8);
        if before.is_some() {
            // Ends with the process: a read from a terminal cannot be called off.
            std::thread::spawn(move || {
                let mut key = [0];
                while matches!(std::io::stdin().read(&mut key), Ok(1)) && send.blocking_send(key[0]).is_ok() {}
            });
        }
        let screen = Self { before, keys };
        write("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(super) fn size() -> (usize, usize) {
        tcgetwinsize(std::io::stdout())
            .ok()
            .map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)))
            .filter(|(columns, rows)| *columns > 0 && *rows > 0)
            .unwrap_or((80, 24))
    }

    /// Shows the lines, and nothing else.
    pub(super) fn draw(lines: &[String]) -> Result<()> {
        // In one piece, and over what is there, so that nothing flickers.
        write(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")))
    }

    /// Waits, and tells whether `q` or Escape was pressed meanwhile.
    pub(super) async fn wait_for_quit(&mut self, wait: Duration) -> bool {
        let pressed = async {
            while let Some(key) = self.keys.recv().await {
                if matches!(key, b'q' | b'Q' | 0x1b) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::time::timeout(wait, pressed).await.is_ok()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write("\x1b[?25h\x1b[?1049l");
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to the terminal")
}
