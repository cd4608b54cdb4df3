"""The loopback service against the real client: what it stores, lists, verifies and refuses."""

from collections.abc import Iterator

import oss2
import pytest
from oss2.models import PartInfo

from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import OssService, oss_service

AUTHS = {"V1": oss2.ProviderAuth, "V4": oss2.ProviderAuthV4}
NAME = "folder/a b+\u00fc.bin"


@pytest.fixture(scope="module")
def service() -> Iterator[OssService]:
    with oss_service() as (service, _):
        yield service


def bucket_of(
    service: OssService, version: str = "V4", secret: str = SECRET, region: str = "cn-hangzhou"
) -> oss2.Bucket:
    provider = oss2.StaticCredentialsProvider(ACCESS, secret)
    return oss2.Bucket(AUTHS[version](provider), service.endpoint, "shards", region=region, connect_timeout=(3, 10))


@pytest.mark.parametrize("version", AUTHS)
def test_objects_go_in_and_out(service: OssService, version: str) -> None:
    bucket = bucket_of(service, version)
    assert bucket.put_object(NAME, b"hello world").crc is not None  # the client compares it
    assert bucket.get_object(NAME).read() == b"hello world"
    assert bucket.get_object(NAME, byte_range=(6, None)).read() == b"world"
    assert bucket.head_object(NAME).content_length == 11
    with pytest.raises(oss2.exceptions.OssError) as caught:
        bucket.put_object(NAME, b"x", headers={"x-oss-forbid-overwrite": "true"})
    assert (caught.value.status, caught.value.code) == (409, "FileAlreadyExists") and caught.value.request_id
    for i in range(7):
        bucket.put_object(f"list/{i}/x", b"x")
    found = list(oss2.ObjectIterator(bucket, prefix="list/", delimiter="/", max_keys=3))
    assert [each.key for each in found] == [f"list/{i}/" for i in range(7)] and found[0].is_prefix()
    assert len(list(oss2.ObjectIteratorV2(bucket, prefix="list/", max_keys=2))) == 7
    bucket.delete_object(NAME)
    with pytest.raises(oss2.exceptions.NoSuchKey):
        bucket.get_object(NAME)


@pytest.mark.parametrize("version", AUTHS)
def test_an_upload_in_parts_is_whole_or_absent(service: OssService, version: str) -> None:
    bucket = bucket_of(service, version)
    upload = bucket.init_multipart_upload("parts").upload_id
    sent = []
    for number in (1, 2, 3):
        result = bucket.upload_part("parts", upload, number, bytes([number]) * 700)
        sent.append(PartInfo(number, result.etag, size=700, part_crc=result.crc))
    assert not bucket.object_exists("parts")
    with pytest.raises(oss2.exceptions.OssError, match="InvalidPart"):
        bucket.complete_multipart_upload("parts", upload, [*sent[:2], PartInfo(3, "0" * 32, size=700, part_crc=0)])
    bucket.upload_part("parts", upload, 2, b"\x09" * 700)  # in the place of the one before
    sent[1] = PartInfo(
        2, bucket.upload_part("parts", upload, 2, b"\x02" * 700).etag, size=700, part_crc=sent[1].part_crc
    )
    bucket.complete_multipart_upload("parts", upload, sent)  # compares the CRC of the whole
    assert bucket.get_object("parts").read() == b"".join(bytes([number]) * 700 for number in (1, 2, 3))
    again = bucket.init_multipart_upload("parts").upload_id
    bucket.upload_part("parts", again, 1, b"other")
    bucket.abort_multipart_upload("parts", again)
    with pytest.raises(oss2.exceptions.NoSuchUpload):
        bucket.upload_part("parts", again, 2, b"late")
    bucket.delete_object("parts")


def test_a_part_whose_answer_never_comes_is_sent_again_alone(service: OssService) -> None:
    bucket = bucket_of(service)
    bucket.timeout = (10, 2.0)
    service.plan({"kind": "silence", "method": "PUT", "skip": 1, "seconds": 10.0})
    service.forget()
    upload = bucket.init_multipart_upload("retried").upload_id
    sent = []
    for number in (1, 2, 3):
        for _ in range(2):
            try:
                result = bucket.upload_part("retried", upload, number, bytes([number]) * 100)
            except oss2.exceptions.RequestError:
                continue
            sent.append(PartInfo(number, result.etag, size=100, part_crc=result.crc))
            break
    bucket.complete_multipart_upload("retried", upload, sent)
    assert service.counts["PUT object served"] == 4
    service.plan()


@pytest.mark.parametrize("version", AUTHS)
def test_a_wrong_signature_is_refused(service: OssService, version: str) -> None:
    bucket_of(service, version).put_object("signed", b"x")
    with pytest.raises(oss2.exceptions.OssError, match="SignatureDoesNotMatch"):
        bucket_of(service, version, secret="other").get_object("signed")
    with pytest.raises(oss2.exceptions.OssError, match="InvalidAccessKeyId"):
        oss2.Bucket(oss2.AuthV4("nobody", SECRET), service.endpoint, "shards", region="cn-hangzhou").get_object(
            "signed"
        )
    anonymous = oss2.Bucket(oss2.AnonymousAuth(), service.endpoint, "shards")
    with pytest.raises(oss2.exceptions.AccessDenied):
        anonymous.get_object("signed")
    with pytest.raises(oss2.exceptions.OssError, match="SignatureDoesNotMatch"):
        bucket_of(service, "V4", region="cn-beijing").get_object("signed")


def test_crc64_is_that_of_the_standard(service: OssService) -> None:
    """CRC-64/XZ of "123456789", from the catalogue of parametrised CRC algorithms."""
    bucket = bucket_of(service)
    assert bucket.put_object("check", b"123456789").crc == 0x995DC9BBDF1939FA


def test_a_service_that_lets_little_through_counts_it(service: OssService) -> None:
    bucket = bucket_of(service)
    bucket.put_object("little", b"x" * 100)
    service.forget()
    service.throttle(requests=10, burst_seconds=0.5)
    refused = 0
    for _ in range(30):
        try:
            bucket.get_object("little").read()
        except oss2.exceptions.ServerError as error:
            assert (error.status, error.code) == (503, "TotalQpsLimitExceeded")
            refused += 1
    assert refused > 0 and service.counts["refused TotalQpsLimitExceeded"] == refused
    service.throttle(requests=10, delays=True, burst_seconds=0.0)
    delays = [int(bucket.get_object("little").headers.get("x-oss-qos-delay-time", 0)) for _ in range(4)]
    assert max(delays) > 50
    service.throttle()
