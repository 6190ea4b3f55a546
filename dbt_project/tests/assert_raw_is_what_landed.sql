-- Nothing leaves raw or comes into it unseen: of each load since the last purge, what the ledger says has landed is in
-- raw or erased; and raw has no message of a load that the ledger does not know.
-- (It names the last model, so that in `dbt build` a load that is wrong keeps no model from being built.)
-- depends_on: {{ ref('pipeline_health') }}

with

kept as (

    select
        load_id,
        landed
    from {{ source('raw', 'loads') }}
    where loaded_at >= (select coalesce(max(landed_before), '-infinity') from {{ source('raw', 'purges') }})

),

in_raw as (

    select
        load_id,
        count(*) as in_raw
    from {{ source('raw', 'sqs_messages') }}
    group by load_id

),

erased as (

    select
        load_id,
        count(*) as erased
    from {{ source('privacy', 'erased_messages') }}
    group by load_id

),

known as (

    select load_id from {{ source('raw', 'loads') }}

)

select
    coalesce(kept.load_id, in_raw.load_id) as load_id,
    kept.landed,
    in_raw.in_raw,
    erased.erased
from kept
full join in_raw on kept.load_id = in_raw.load_id
left join erased on kept.load_id = erased.load_id
left join known on in_raw.load_id = known.load_id
where
    kept.landed <> coalesce(in_raw.in_raw, 0) + coalesce(erased.erased, 0)
    or (in_raw.load_id is not null and known.load_id is null)
