"""The networks: functions from normalised pictures to raw logits."""
