-- Nothing is lost: of each load that dbt has taken, what the ledger says has landed is taken or erased; and nothing is
-- taken that the ledger does not know. (assert_each_message_has_one_outcome: what is taken is accepted or rejected.)
{{ config(tags=['full_scan']) }}

with

taken as (

    select
        load_id,
        count(*) as taken
    from {{ ref('int_messages__masked') }}
    group by load_id

),

erased as (

    select
        load_id,
        count(*) as erased
    from {{ source('privacy', 'erased_messages') }}
    group by load_id

),

loads as (

    select
        load_id,
        landed
    from {{ source('raw', 'loads') }}
    where load_id <= (select coalesce(max(load_id), 0) from {{ ref('int_messages__masked') }})

)

select
    coalesce(loads.load_id, taken.load_id) as load_id,
    loads.landed,
    taken.taken,
    erased.erased
from loads
full join taken on loads.load_id = taken.load_id
left join erased on coalesce(loads.load_id, taken.load_id) = erased.load_id
where coalesce(loads.landed, 0) <> coalesce(taken.taken, 0) + coalesce(erased.erased, 0)
