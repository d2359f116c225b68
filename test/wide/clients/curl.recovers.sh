# #region recovers
umask 077
# From stdin, so that the key is not in the list of processes.
printf 'Authorization: Bearer %s\nIdempotency-Key: %s\n' "$KEY" "$IDEMPOTENCY_KEY" |
  curl --silent --request POST --header @- --max-time "$SECONDS_EACH" --retry "$RETRIES" --retry-delay 1 --retry-max-time 60 \
    --retry-all-errors --fail-with-body --output "$FILE" "$URL"
# #endregion
