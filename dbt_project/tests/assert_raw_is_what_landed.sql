-- Nothing leaves raw unseen: what the ledger says has landed since the last purge is in raw, or erased.

with

kept as (

    select
        load_id,
        landed
    from {{ source('raw', 'loads') }}
    where loaded_at >= (select coalesce(max(landed_before), '-infinity') from {{ source('raw', 'purges') }})

),

counted as (

    select
        (select coalesce(sum(landed), 0) from kept) as landed,
        (
            select count(*) from {{ source('raw', 'sqs_messages') }} as messages
            inner join kept on messages.load_id = kept.load_id
        ) as in_raw,
        (
            select count(*) from {{ source('privacy', 'erased_messages') }} as erased_messages
            inner join kept on erased_messages.load_id = kept.load_id
        ) as erased

)

select * from counted
where landed <> in_raw + erased
