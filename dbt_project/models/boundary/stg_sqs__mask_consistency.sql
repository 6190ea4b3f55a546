-- What proves the masks consistent, as counts: a value has one token and a token one value when all three are equal.

with

logins as (

    select * from {{ ref('base_sqs__logins') }} where reason is null

),

pairs as (

    select 'ip' as kind, ip as plain, masked_ip as token from logins
    union all
    select 'device_id' as kind, device_id as plain, masked_device_id as token from logins

),

open_values as (

    select masking.canonical_text(user_id) as value from logins
    union
    select masking.canonical_text(device_type) as value from logins
    union
    select masking.canonical_text(locale) as value from logins

),

counted as (

    select
        kind,
        count(distinct plain) as plain_values,
        count(distinct token) as tokens,
        count(distinct (plain, token)) as pairs,
        count(distinct plain) filter (where plain in (select value from open_values)) as values_in_the_open
    from pairs
    group by kind

)

select * from counted
