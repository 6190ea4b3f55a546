-- The tests of the masks compare every accepted message that is still in raw: a test of nothing passes too.
{{ config(tags=['full_scan']) }}

with

kinds as (

    select * from unnest(array['ip', 'device_id']) as kinds (kind)

),

in_raw as materialized (

    select message_id from {{ source('raw', 'sqs_messages') }}

),

accepted_in_raw as (

    select count(*) as logins
    from {{ ref('int_messages__masked') }} as taken
    inner join in_raw on taken.message_id = in_raw.message_id
    where taken.is_accepted

)

select kinds.kind, accepted_in_raw.logins, compared.logins as compared
from accepted_in_raw
cross join kinds
left join {{ as_owner(ref('stg_sqs__mask_consistency')) }} as compared on kinds.kind = compared.kind
where coalesce(compared.logins, 0) < accepted_in_raw.logins
