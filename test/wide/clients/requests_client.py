from requests import Session
from requests.adapters import HTTPAdapter
from urllib3 import Retry


def defaults(url, headers, _retries, timeout):
    answer = Session().post(url, headers=headers, timeout=timeout)
    return answer.status_code, answer.text


def recovers(url, headers, retries, timeout):
    # #region recovers
    # The waits double up to five seconds.
    session = Session()
    retry = Retry(
        total=retries,
        allowed_methods=None,
        status_forcelist=[502, 503, 504],
        backoff_factor=10 / 2**retries,
        respect_retry_after_header=False,
    )
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount("http://", HTTPAdapter(max_retries=retry))
    answer = session.post(url, headers=headers, timeout=timeout)
    # #endregion
    return answer.status_code, answer.text
