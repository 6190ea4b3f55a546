-- What proves the masks right, as counts over all accepted messages in raw, by kind of value.

with

logins as (

    select
        *,
        array[
            masking.canonical_text(user_id), masking.canonical_text(device_type), masking.canonical_text(locale)
        ] as in_the_open
    from {{ ref('base_sqs__logins') }}
    where reason is null

),

values_and_tokens as (

    select 'ip' as kind, ip as plain, masked_ip as token, in_the_open from logins
    union all
    select 'device_id' as kind, device_id as plain, masked_device_id as token, in_the_open from logins

),

counted as (

    select
        kind,
        count(*) as logins,
        count(distinct plain) as plain_values,
        count(distinct token) as tokens,
        count(distinct row(plain, token)) as pairs,
        count(*) filter (where token = encode(sha256(convert_to(plain, 'UTF8')), 'hex')) as tokens_without_key,
        count(*) filter (where plain = any(in_the_open)) as logins_with_value_in_the_open
    from values_and_tokens
    group by kind

)

select * from counted
