"""What the stages share. No stage logic lives here."""
