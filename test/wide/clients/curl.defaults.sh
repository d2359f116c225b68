curl --silent --fail --max-time "$SECONDS_EACH" --retry 3 --request POST --header "Authorization: Bearer $KEY" --header "Idempotency-Key: $IDEMPOTENCY_KEY" "$URL"
