"""Moves messages from an SQS queue into raw.sqs_messages: receive, land, commit, delete."""
