/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel's parsers say of messages: the parsers themselves, compiled here, and what they found.
 *
 * stdin: records of a byte (what to parse), four of length, and that many. stdout, for each: the errno (0: read), and
 * a CRC-32 over everything that was found, each piece with its length in front; findings.py has the order.
 */
#include <stdlib.h>
#include <time.h>
#include "shim.h"
#include "pkcs7_parser.h"
#include "verify_pefile.h"

static char memory[1 << 21];
static size_t used;
static u32 crc;

void *arena(size_t size)
{
	void *taken = memory + used;

	used += (size + 15) & ~(size_t)15;
	if (used > sizeof(memory))
		abort();
	return taken;
}

time64_t mktime64(unsigned year, unsigned month, unsigned day, unsigned hour, unsigned minute, unsigned second)
{
	struct tm tm = { .tm_year = (int)year - 1900, .tm_mon = (int)month - 1, .tm_mday = (int)day,
			 .tm_hour = (int)hour, .tm_min = (int)minute, .tm_sec = (int)second };

	return timegm(&tm);
}

struct asymmetric_key_id *asymmetric_key_generate_id(const void *val_1, size_t len_1, const void *val_2, size_t len_2)
{
	struct asymmetric_key_id *id = arena(sizeof(*id) + len_1 + len_2);

	id->len = (unsigned short)(len_1 + len_2);
	if (len_1)
		memcpy(id->data, val_1, len_1);
	if (len_2)
		memcpy(id->data + len_1, val_2, len_2);
	return id;
}

/* Whether a certificate's own signature holds is not the parser's business here. */
int x509_get_sig_params(struct x509_certificate *cert) { (void)cert; return 0; }
int x509_check_for_self_signed(struct x509_certificate *cert) { (void)cert; return 0; }
void public_key_free(struct public_key *key) { (void)key; }
void public_key_signature_free(struct public_key_signature *sig) { (void)sig; }

static void add(const void *data, size_t size)
{
	const u8 *byte = data;

	crc = ~crc;
	while (size--) {
		crc ^= *byte++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
	}
	crc = ~crc;
}

static void piece(const void *data, size_t size)
{
	u32 length = (u32)size;

	add(&length, 4);
	add(data, size);
}

static void missing(void)
{
	piece("-", 1);
}

static void text(const char *string) { piece(string, strlen(string)); }
static void number(time64_t value) { piece(&value, 8); }

static void id(const struct asymmetric_key_id *id)
{
	if (id)
		piece(id->data, id->len);
	else
		missing();
}

static void certificate(const struct x509_certificate *cert)
{
	piece(cert->tbs, cert->tbs_size);
	piece(cert->raw_serial, cert->raw_serial_size);
	piece(cert->raw_issuer, cert->raw_issuer_size);
	piece(cert->raw_subject, cert->raw_subject_size);
	number(cert->valid_from);
	number(cert->valid_to);
	text(cert->sig->pkey_algo);
	text(cert->sig->hash_algo);
	piece(cert->raw_sig, cert->raw_sig_size);
	text(cert->pub->pkey_algo);
	piece(cert->pub->key, cert->pub->keylen);
	id(cert->skid);
	id(cert->sig->auth_ids[0]);
	id(cert->sig->auth_ids[1]);
}

static void signer(const struct pkcs7_signed_info *info)
{
	u8 set = 0x31;

	id(info->sig->auth_ids[0]);
	text(info->sig->pkey_algo);
	text(info->sig->hash_algo);
	piece(info->sig->s, info->sig->s_size);
	if (info->authattrs) {
		/* Until 6.12 without their tag, in 7.3 with the one that they have in the file. */
		const u8 *rest = info->authattrs;
		u32 size = info->authattrs_len - ATTRIBUTES_HAVE_TAG, length = size + 1;

		add(&length, 4);
		add(&set, 1);
		add(rest + ATTRIBUTES_HAVE_TAG, size);
		piece(info->msgdigest, info->msgdigest_len);
	} else {
		missing();
	}
	number(info->signing_time);
}

static int content(const void *data, size_t size, size_t header)
{
	struct pefile_context context = {};
	int ret = mscode_parse(&context, data, size, header);

	if (ret >= 0) {
		text(context.digest_algo);
		piece(context.digest, context.digest_len);
	}
	return ret;
}

static int message(const void *data, size_t size)
{
	struct pkcs7_message *read = pkcs7_parse_message(data, size);

	if (IS_ERR(read))
		return (int)PTR_ERR(read);
	number(read->data_type == OID_msIndirectData);
	for (struct x509_certificate *one = read->certs; one; one = one->next)
		certificate(one);
	for (struct pkcs7_signed_info *one = read->signed_infos; one; one = one->next)
		signer(one);
	if (!read->data) {
		missing();
		return 0;
	}
	piece(read->data, read->data_len);
	number(content(read->data, read->data_len, read->data_hdrlen));
	return 0;
}

static int lone_certificate(const void *data, size_t size)
{
	struct x509_certificate *read = x509_cert_parse(data, size);

	if (IS_ERR(read))
		return (int)PTR_ERR(read);
	certificate(read);
	return 0;
}

int main(void)
{
	u8 kind;
	u32 size;

	while (fread(&kind, 1, 1, stdin) == 1 && fread(&size, 4, 1, stdin) == 1) {
		memset(memory, 0, used);
		used = crc = 0;
		/* Two octets more than there are may be looked at. */
		u8 *data = arena(size + 16);
		int ret;

		if (size && fread(data, 1, size, stdin) != size)
			return 1;
		if (kind == 0)
			ret = message(data, size);
		else if (kind == 1)
			ret = lone_certificate(data, size);
		else
			ret = content(data, size, 0);
		printf("%d %u\n", ret < 0 ? -ret : 0, ret < 0 ? 0 : crc);
	}
	return 0;
}
