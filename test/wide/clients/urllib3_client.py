from urllib3 import PoolManager, Retry


def defaults(url, headers, _retries, timeout):
    answer = PoolManager(timeout=timeout).request("POST", url, headers=headers)
    return answer.status, answer.data.decode()


def recovers(url, headers, retries, timeout):
    # #region recovers
    # The waits double up to five seconds.
    retry = Retry(
        total=retries,
        allowed_methods=None,
        status_forcelist=[502, 503, 504],
        backoff_factor=10 / 2**retries,
        respect_retry_after_header=False,
    )
    answer = PoolManager(timeout=timeout, retries=retry).request("POST", url, headers=headers)
    # #endregion
    return answer.status, answer.data.decode()
